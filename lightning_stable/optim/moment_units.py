# SPDX-License-Identifier: Apache-2.0
"""Moments in a unit of their own, so that a gradient need not be multiplied by what the moments are to take it by."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

_STATE = ("exp_avg_unit", "exp_avg_sq_unit")
_SQUARABLE = 1e-9, 1e9  # sizes of a largest entry whose square, and that of entries far smaller, float32 can hold
_NEAR = 8.0  # times more or less that a gradient may count
_DTYPE = torch.float64


@dataclass(frozen=True, slots=True)
class MomentUnits:
    """What two kept moments are to be multiplied by to be the moments.

    A gradient g that counts as f g enters them as it is, and their decay rates make up for it:

        m = u m',    u <- beta1 u + (1 - beta1) f,      m' <- beta1' m' + (1 - beta1') g,      beta1' = beta1 u_old / u
        v = w v',    w <- beta2 w + (1 - beta2) f^2,    v' <- beta2' v' + (1 - beta2') g^2,    beta2' = beta2 w_old / w

    That saves a pass over the gradient, which takes a fifth of a step.

    Args:
        exp_avg: u, above 0.
        exp_avg_sq: w, above 0.

    Example:
        >>> MomentUnits().after(factor=3.0, betas=(0.5, 0.0))[1:]
        (MomentUnits(exp_avg=2.0, exp_avg_sq=9.0), (0.25, 0.0))
    """

    exp_avg: float = 1.0
    exp_avg_sq: float = 1.0

    def after(
        self, factor: float, betas: tuple[float, float]
    ) -> tuple["MomentUnits | None", "MomentUnits", tuple[float, float]]:
        """What to do about a gradient that counts `factor` times.

        Returns:
            What the moments have to be multiplied by first, if anything: where a gradient counts much less than those
            before it, or much more, a rate that near 1 or 0 would be coarse, and they change to its units. Then the
            units once it has entered, and the rates by which it does.
        """
        least, most = factor / _NEAR, factor * _NEAR
        if not (least < self.exp_avg < most and least**2 < self.exp_avg_sq < most**2):
            change = MomentUnits(self.exp_avg / factor, self.exp_avg_sq / factor**2)
            return change, MomentUnits(factor, factor**2), betas
        first = betas[0] * self.exp_avg + (1 - betas[0]) * factor
        second = betas[1] * self.exp_avg_sq + (1 - betas[1]) * factor**2
        return None, MomentUnits(first, second), (betas[0] * self.exp_avg / first, betas[1] * self.exp_avg_sq / second)

    def multiply(self, exp_avg: Tensor, exp_avg_sq: Tensor) -> None:
        """Multiply moments by the units, in place."""
        exp_avg.mul_(self.exp_avg)
        exp_avg_sq.mul_(self.exp_avg_sq)


def read_units(states: Sequence[dict[str, Any]]) -> list[MomentUnits]:
    """Return what the states of parameters hold, in one go.

    Args:
        states: On the host, as far as units are concerned.

    Example:
        >>> read_units([])
        []
    """
    held = [state[name] for state in states for name in _STATE]
    numbers = torch.stack(held).tolist() if held else []
    return [MomentUnits(*pair) for pair in zip(numbers[::2], numbers[1::2], strict=True)]


def write_units(states: Sequence[dict[str, Any]], units: Sequence[MomentUnits]) -> None:
    """Write units into the states of parameters, in one go.

    Args:
        states: Of the parameters.
        units: For each.

    Example:
        >>> state = {"exp_avg_unit": torch.tensor(1.0), "exp_avg_sq_unit": torch.tensor(1.0)}
        >>> write_units([state], [MomentUnits(2.0, 9.0)])
        >>> read_units([state])
        [MomentUnits(exp_avg=2.0, exp_avg_sq=9.0)]
    """
    if states:
        numbers = torch.tensor([number for each in units for number in (each.exp_avg, each.exp_avg_sq)], dtype=_DTYPE)
        torch._foreach_copy_([state[name] for state in states for name in _STATE], list(numbers.unbind()))


def can_keep_units(factor: float, largest: float) -> bool:
    """Whether moments can hold a gradient as it is.

    Args:
        factor: What it counts.
        largest: Size of its largest entry.

    Example:
        >>> can_keep_units(1e12, 1e-12), can_keep_units(-1.0, 1.0), can_keep_units(0.01, 3.0)
        (False, False, True)
    """
    return factor > 0 and _SQUARABLE[0] < largest < _SQUARABLE[1]


def without_units(states: Sequence[dict[str, Any]], exp_avgs: Sequence[Tensor], exp_avg_sqs: Sequence[Tensor]) -> None:
    """Multiply moments by their units, which are 1 from there on.

    Args:
        states: Of the parameters.
        exp_avgs: Their first moments, as this process holds them; changed.
        exp_avg_sqs: The second.

    Example:
        >>> state = {"exp_avg_unit": torch.tensor(2.0), "exp_avg_sq_unit": torch.tensor(9.0)}
        >>> m, v = torch.ones(1), torch.ones(1)
        >>> without_units([state], [m], [v])
        >>> m, v, read_units([state])
        (tensor([2.]), tensor([9.]), [MomentUnits(exp_avg=1.0, exp_avg_sq=1.0)])
    """
    for state, units, *moments in zip(states, read_units(states), exp_avgs, exp_avg_sqs, strict=True):
        if units != MomentUnits():
            units.multiply(*moments)
            write_units([state], [MomentUnits()])


def new_units() -> dict[str, Tensor]:
    """Return the units of moments that are still zero, for the state of a parameter.

    Example:
        >>> new_units()["exp_avg_unit"]
        tensor(1., dtype=torch.float64)
    """
    return {name: torch.ones((), dtype=_DTYPE) for name in _STATE}
