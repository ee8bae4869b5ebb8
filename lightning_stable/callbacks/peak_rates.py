# SPDX-License-Identifier: Apache-2.0
"""The base rates of an optimizer's groups, which are the peaks where a schedule has one of its own."""

from collections.abc import Iterable
from typing import Any

from torch.optim import Optimizer

_OF_ONE_CYCLE = {"initial_lr", "max_lr", "min_lr"}  # what OneCycleLR keeps in a group


def peak_rates(optimizer: Optimizer, schedules: Iterable[Any] = ()) -> list[Any]:
    """The base rate of each group, as the number or tensor it is kept in.

    It is what the group was made with, before a schedule or a warmup began to move it. `OneCycleLR` and `CyclicLR`
    begin far below the rate they are made with: with these it is their `max_lr`.

    Args:
        optimizer: Whose groups.
        schedules: Those of the run, without the ones that they are made of.

    Returns:
        One rate for each group; 0 for a group without any.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
        >>> schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=0.5, total_steps=10)
        >>> peak_rates(optimizer, [schedule])
        [0.5]
    """
    groups = optimizer.param_groups
    for schedule in with_parts(schedules):
        peaks = getattr(schedule, "max_lrs", ())  # of CyclicLR
        if len(peaks) == len(groups) and is_of(schedule, optimizer):
            return list(peaks)
    return [_base_rate(group) for group in groups]


def with_parts(schedules: Iterable[Any]) -> list[Any]:
    """Schedules, and those that `SequentialLR` and `ChainedScheduler` are made of.

    Args:
        schedules: Of any kind.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1)
        >>> step = torch.optim.lr_scheduler.StepLR(optimizer, 3)
        >>> chained = torch.optim.lr_scheduler.ChainedScheduler([step])
        >>> with_parts([chained]) == [chained, step]
        True
    """
    found = []
    for schedule in schedules:
        found += [schedule, *with_parts(getattr(schedule, "_schedulers", ()))]
    return found


def is_of(schedule: Any, optimizer: Optimizer) -> bool:
    """Whether a schedule moves the rates of `optimizer`.

    Args:
        schedule: Of any kind.
        optimizer: Whose rates.

    Example:
        >>> import torch
        >>> one, other = (torch.optim.SGD([torch.zeros(2, requires_grad=True)], lr=0.1) for _ in range(2))
        >>> is_of(torch.optim.lr_scheduler.StepLR(one, 3), one), is_of(torch.optim.lr_scheduler.StepLR(one, 3), other)
        (True, False)
    """
    return getattr(schedule, "optimizer", optimizer) is optimizer


def _base_rate(group: dict[str, Any]) -> Any:
    if group.keys() >= _OF_ONE_CYCLE:
        return group["max_lr"]
    return group.get("initial_lr", group.get("lr", 0.0))
