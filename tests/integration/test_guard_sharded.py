# SPDX-License-Identifier: Apache-2.0
"""Snapshots and clipped gradients of parameters of which each of two processes holds a half, without any exchange."""

import pytest
import torch
from torch import nn
from torch.distributed.tensor import Shard, distribute_tensor, init_device_mesh

from lightning_stable.guard.signals import GradientReading
from lightning_stable.snapshots.snapshot import _OptimizerCopy
from lightning_stable.snapshots.transfer import Transfer
from tests.distributed.processes import of_both, on_two_ranks


@pytest.mark.slow
def test_each_process_keeps_and_puts_back_its_own_shard(tmp_path):
    assert of_both(on_two_ranks({"check": check}, tmp_path), "check") == [None, None]


def check(rank, folder):
    mesh = init_device_mesh("cpu", (2,))
    weight = nn.Parameter(distribute_tensor(torch.arange(12.0).view(4, 3), mesh, [Shard(0)]))
    gradient = distribute_tensor(torch.full((4, 3), 3.0), mesh, [Shard(0)])
    optimizer = torch.optim.AdamW([weight], lr=0.1, foreach=False)
    weight.grad = gradient
    optimizer.step()
    if rank == 0:  # the other one takes no part: whoever waited for it would wait in vain
        go_back(weight, optimizer)
        shrink(weight, optimizer)


def go_back(weight, optimizer):
    copy = _OptimizerCopy(optimizer, Transfer("host"))
    copy.capture()
    state = optimizer.state[weight]
    moment, before = state["exp_avg"], state["exp_avg"].to_local().clone()
    optimizer.step()
    assert not torch.equal(moment.to_local(), before)
    copy.restore()
    assert state["exp_avg"] is moment
    assert torch.equal(moment.to_local(), before)
    assert state["step"] == 1


def shrink(weight, optimizer):
    assert GradientReading(optimizer, norm=4.0, typical=1.0, is_finite=True).shrink() == 0.25
    assert torch.equal(weight.grad.to_local(), torch.full((2, 3), 0.75))
