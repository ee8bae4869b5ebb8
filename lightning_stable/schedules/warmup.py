# SPDX-License-Identifier: Apache-2.0
"""How a learning rate comes up: over a given time, or by rules that know Adam's second moment."""

import math
from typing import Any

from torch.optim import Optimizer

CURVES = ("linear", "cosine", "exponential")
UNTUNED = ("untuned_linear", "untuned_exponential", "radam")
_WITHOUT_SECOND_MOMENT = ("lion", "emolynx", "aggmo")  # classes with `betas` that are all of first moments
_EXPONENTIAL_START = 0.01  # a straight line in the logarithm cannot start at zero


def warmup_factor(share: float, curve: str = "linear", start: float | None = None) -> float:
    """The factor on the rate when a share of the warmup is done.

        linear:       s + (1 - s) x                          s: start, x: share
        cosine:       s + (1 - s) (1 - cos(pi x)) / 2
        exponential:  s ^ (1 - x)

    Paper: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour" (2017), for the straight line.

    Deviations: none.

    Args:
        share: Of the warmup, at the end of the step; above 1 the warmup is over.
        curve: `linear`, `cosine` or `exponential`.
        start: The factor at the beginning; by default 0, and 0.01 for `exponential`.

    Example:
        >>> [warmup_factor(share) for share in (0.25, 0.5, 1.0, 2.0)]
        [0.25, 0.5, 1.0, 1.0]
        >>> round(warmup_factor(0.5, "exponential"), 6)
        0.1
    """
    x = min(share, 1.0)
    if curve == "exponential":
        return (_EXPONENTIAL_START if start is None else start) ** (1.0 - x)
    if curve == "cosine":
        x = (1.0 - math.cos(math.pi * x)) / 2.0
    low = 0.0 if start is None else start
    return low + (1.0 - low) * x


def untuned_factor(step: float, beta2: float, rule: str = "untuned_linear") -> float:
    """The factor on Adam's rate in a step, by a rule that needs no length of a warmup.

        untuned_linear:       min(1, t (1 - beta2) / 2)
        untuned_exponential:  1 - exp(-t (1 - beta2))
        radam:                sqrt((r_t - 4) (r_t - 2) r / ((r - 4) (r - 2) r_t))
                              r = 2 / (1 - beta2) - 1,    r_t = r - 2 t beta2^t / (1 - beta2^t)

    Paper: Ma and Yarats, "On the adequacy of untuned warmup for adaptive optimization" (AAAI 2021), for the first two;
    Liu et al., "On the Variance of the Adaptive Learning Rate and Beyond" (RAdam, ICLR 2020).

    Deviations: while r_t <= 4, in the first four steps or so, RAdam takes steps of plain momentum; as a factor on
    Adam's rate there is nothing that equals it, and those steps have the factor of the first one after them. With
    beta2 <= 0.6, where r <= 4, the factor is 1.

    Args:
        step: The number of the step, from 1.
        beta2: Adam's, in [0, 1).
        rule: `untuned_linear`, `untuned_exponential` or `radam`.

    Example:
        >>> [round(untuned_factor(step, 0.999), 4) for step in (1, 1000, 2000, 4000)]
        [0.0005, 0.5, 1.0, 1.0]
        >>> [round(untuned_factor(step, 0.999, "radam"), 4) for step in (1, 5, 6, 1000)]
        [0.0173, 0.0173, 0.0258, 0.6453]
    """
    if rule == "untuned_linear":
        return min(1.0, step * (1.0 - beta2) / 2.0)
    if rule == "untuned_exponential":
        return 1.0 - math.exp(-step * (1.0 - beta2))
    longest = 2.0 / (1.0 - beta2) - 1.0
    if longest <= 4.0:
        return 1.0
    length = _radam_length(step, beta2, longest)
    while length <= 4.0:
        step += 1
        length = _radam_length(step, beta2, longest)
    return math.sqrt((length - 4.0) * (length - 2.0) * longest / ((longest - 4.0) * (longest - 2.0) * length))


def second_moment_beta(optimizer: Optimizer, group: dict[str, Any], warmup: str) -> float:
    """The decay of a group's second moment, which is the second of `betas` but for Adan, where it is the third.

    Args:
        optimizer: The optimizer.
        group: One of its groups.
        warmup: The rule that asks for it.

    Raises:
        ValueError: If the optimizer has no second moment.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.Adam([torch.zeros(2, requires_grad=True)])
        >>> second_moment_beta(optimizer, optimizer.param_groups[0], "radam")
        0.999
    """
    betas = group.get("betas", ())
    if len(betas) < 2 or any(_is_a(name, optimizer) for name in _WITHOUT_SECOND_MOMENT):
        raise ValueError(
            f'`ProfileLR(warmup="{warmup}")` needs an optimizer with two `betas`, one of them of a second moment, such '
            f"as AdamW, got {type(optimizer).__name__}. Use `warmup_steps` with `linear`."
        )
    return float(betas[2 if len(betas) > 2 and _is_a("adan", optimizer) else 1])


def _is_a(name: str, optimizer: Optimizer) -> bool:
    """By name, since they are other libraries'."""
    return any(name in kind.__name__.lower() for kind in type(optimizer).__mro__)


def _radam_length(step: float, beta2: float, longest: float) -> float:
    power = beta2**step
    return longest - 2.0 * step * power / (1.0 - power)
