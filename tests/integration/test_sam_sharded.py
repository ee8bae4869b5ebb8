# SPDX-License-Identifier: Apache-2.0
"""SAM on parameters of which each of two processes holds a half."""

import os

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from lightning_stable.optim.sam import SAM


@pytest.mark.slow
def test_over_shards_the_norm_is_that_of_the_whole(tmp_path):
    torch.multiprocessing.spawn(check, args=(str(tmp_path / "store"),), nprocs=2)


def check(rank, store):
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    torch.distributed.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    mesh = init_device_mesh("cpu", (2,))
    whole = nn.Parameter(torch.arange(1.0, 13.0).view(4, 3))
    shard = nn.Parameter(distribute_tensor(whole.detach().clone(), mesh, [Shard(0)]))
    for adaptive in (False, True):
        for weight in (whole, shard):
            train(weight, adaptive)
        torch.testing.assert_close(shard.full_tensor(), whole.detach())
    torch.distributed.destroy_process_group()


def train(weight, adaptive):
    optimizer = SAM([weight], "torch.optim.AdamW", rho=0.5, adaptive=adaptive, lr=0.1)

    def closure():
        optimizer.zero_grad()
        weight.pow(4).sum().backward()

    for _ in range(3):
        optimizer.step(closure)
