# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch.optim import SGD
from torch.optim import lr_scheduler as schedules

from lightning_stable.callbacks.peak_rates import peak_rates, with_parts


def make():
    groups = [{"params": [torch.nn.Parameter(torch.ones(2))], "lr": rate} for rate in (0.1, 0.02)]
    return SGD(groups, momentum=0.9)


SCHEDULES = {
    "none": (lambda optimizer: [], [0.1, 0.02]),
    "warmup": (lambda optimizer: [schedules.LinearLR(optimizer, 0.1, total_iters=3)], [0.1, 0.02]),
    "one cycle": (lambda optimizer: [schedules.OneCycleLR(optimizer, [0.5, 0.3], total_steps=9)], [0.5, 0.3]),
    "cyclic": (lambda optimizer: [schedules.CyclicLR(optimizer, 0.01, [0.5, 0.3], 3)], [0.5, 0.3]),
    "cyclic, within another": (
        lambda optimizer: [schedules.ChainedScheduler([schedules.CyclicLR(optimizer, 0.01, [0.5, 0.3], 3)])],
        [0.5, 0.3],
    ),
    "of another optimizer": (lambda optimizer: [schedules.CyclicLR(make(), 0.01, [0.5, 0.3], 3)], [0.1, 0.02]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_base_rates_are_the_peaks_of_a_schedule_that_has_some(name):
    make_schedules, expected = SCHEDULES[name]
    optimizer = make()
    found = make_schedules(optimizer)
    assert peak_rates(optimizer, found) == expected


def test_a_group_without_a_rate_has_none():
    optimizer = make()
    del optimizer.param_groups[1]["lr"]
    assert peak_rates(optimizer) == [0.1, 0.0]


def test_the_parts_of_parts_are_among_them():
    optimizer = make()
    step = schedules.StepLR(optimizer, 2)
    inner = schedules.ChainedScheduler([step])
    outer = schedules.ChainedScheduler([inner])
    assert with_parts([outer]) == [outer, inner, step]
