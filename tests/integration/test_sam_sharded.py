# SPDX-License-Identifier: Apache-2.0
"""SAM on parameters of which each of two processes holds a half."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from lightning_stable.optim.sam import SAM
from tests.distributed.processes import of_both, on_two_ranks


@pytest.mark.slow
def test_over_shards_the_norm_is_that_of_the_whole(tmp_path):
    assert of_both(on_two_ranks({"check": check}, tmp_path), "check") == [None, None]


def check(rank, folder):
    mesh = init_device_mesh("cpu", (2,))
    whole = nn.Parameter(torch.arange(1.0, 13.0).view(4, 3))
    shard = nn.Parameter(distribute_tensor(whole.detach().clone(), mesh, [Shard(0)]))
    for adaptive in (False, True):
        for weight in (whole, shard):
            train(weight, adaptive)
        torch.testing.assert_close(shard.full_tensor(), whole.detach())


def train(weight, adaptive):
    optimizer = SAM([weight], "torch.optim.AdamW", rho=0.5, adaptive=adaptive, lr=0.1)

    def closure():
        optimizer.zero_grad()
        weight.pow(4).sum().backward()

    for _ in range(3):
        optimizer.step(closure)
