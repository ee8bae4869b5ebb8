# SPDX-License-Identifier: Apache-2.0
"""The learning rate, momentum and weight decay of an optimizer's groups, as a user set them."""

from collections.abc import Iterable
from typing import Any

from torch import Tensor
from torch.optim import Optimizer

from lightning_stable.callbacks.peak_rates import peak_rates, with_parts

_OF_A_GROUP = ("lr", "initial_lr", "max_lr", "min_lr")  # what schedules keep there; those of OneCycleLR are rates, too
_OF_A_SCHEDULE = ("base_lrs", "max_lrs", "_last_lr")  # CyclicLR has the second


class BaseRates:
    """The base rates of all groups, which keep their ratios.

    The base rate of a group is what it was made with, before a schedule or a warmup began to move it; with `OneCycleLR`
    and `CyclicLR` it is their `max_lr`. The rate of the optimizer is that of the group with the largest one.

    Args:
        optimizer: With a positive rate in one group at least.
        schedulers: Those of the run.

    Raises:
        ValueError: If no group has one.

    Example:
        >>> import torch
        >>> weight, bias = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
        >>> optimizer = torch.optim.SGD([{"params": [weight]}, {"params": [bias], "lr": 0.2}], lr=0.1)
        >>> rates = BaseRates(optimizer)
        >>> rates.base, rates.set(1.0)
        (0.2, None)
        >>> [group["lr"] for group in optimizer.param_groups]
        [0.5, 1.0]
    """

    def __init__(self, optimizer: Optimizer, schedulers: Iterable[Any] = ()) -> None:
        self._groups = optimizer.param_groups
        self._schedulers = list(schedulers)
        rates = [float(rate) for rate in peak_rates(optimizer, self._schedulers)]
        self.base = max(rates, default=0.0)
        if not self.base > 0:
            raise ValueError(
                f"`LRRangeTest` needs an optimizer with a learning rate above 0, and the groups of"
                f" `{type(optimizer).__name__}` have {rates or 'none'}. Give `configure_optimizers` one that has."
            )
        self._ratios = [rate / self.base for rate in rates]

    def set(self, rate: float) -> None:
        """Let the next step run with `rate`, whatever a schedule says."""
        for group, ratio in zip(self._groups, self._ratios, strict=True):
            _set(group, "lr", rate * ratio)

    def make_base(self, rate: float) -> None:
        """Make `rate` the base rate of the run: of the groups as they are now, and of its schedules."""
        factor = rate / self.base
        for group in self._groups:
            for name in _OF_A_GROUP:
                if name in group:
                    _set(group, name, float(group[name]) * factor)
        for scheduler in with_parts(self._schedulers):
            for name in _OF_A_SCHEDULE:
                rates = vars(scheduler).get(name)
                if isinstance(rates, list):
                    setattr(scheduler, name, [one * factor for one in rates])
        self.base = rate


def set_momentum(optimizer: Optimizer, value: float) -> None:
    """Set `momentum`, or the first of `betas`, in every group.

    Raises:
        ValueError: If a group has neither.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.Adam([torch.zeros(2, requires_grad=True)])
        >>> set_momentum(optimizer, 0.5)
        >>> optimizer.param_groups[0]["betas"]
        (0.5, 0.999)
    """
    for group in optimizer.param_groups:
        if "betas" in group:
            group["betas"] = type(group["betas"])([value, *group["betas"][1:]])
        elif "momentum" in group:
            group["momentum"] = value
        else:
            raise ValueError(
                f"`LRRangeTest(momentum=...)` needs groups with `momentum` or `betas`, which those of"
                f" `{type(optimizer).__name__}` have not. Leave it None."
            )


def set_weight_decay(optimizer: Optimizer, value: float) -> None:
    """Set `weight_decay` in the groups that have any; in all of them if none has.

    Raises:
        ValueError: If no group knows of it.

    Example:
        >>> import torch
        >>> weight, bias = torch.zeros(2, requires_grad=True), torch.zeros(2, requires_grad=True)
        >>> optimizer = torch.optim.AdamW([{"params": [weight]}, {"params": [bias], "weight_decay": 0.0}])
        >>> set_weight_decay(optimizer, 0.3)
        >>> [group["weight_decay"] for group in optimizer.param_groups]
        [0.3, 0.0]
    """
    groups = [group for group in optimizer.param_groups if "weight_decay" in group]
    if not groups:
        raise ValueError(
            f"`LRRangeTest(weight_decay=...)` needs groups with `weight_decay`, which those of"
            f" `{type(optimizer).__name__}` have not. Leave it None."
        )
    for group in [group for group in groups if group["weight_decay"]] or groups:
        _set(group, "weight_decay", value)


def _set(group: dict[str, Any], name: str, value: float) -> None:
    """In place where the optimizer keeps a tensor, which a captured step holds on to."""
    if isinstance(group[name], Tensor):
        group[name].fill_(value)
    else:
        group[name] = value
