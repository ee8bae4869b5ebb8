# SPDX-License-Identifier: Apache-2.0
"""Stable-SPAM's adaptive normalisation of the gradient's norm."""

from typing import Any, NamedTuple

import torch
from torch import Tensor


class NormHistory(NamedTuple):
    """What is remembered of a tensor's gradient norms; tensors of any one shape, or numbers.

    Args:
        mean: Running mean of the norm, m.
        mean_sq: Running mean of the norm's square, v.
        mean_weight: Product of the decay rates of m so far, 1 at the start.
        mean_sq_weight: Product of the decay rates of v so far, 1 at the start.

    Example:
        >>> NormHistory.start(torch.zeros(())).mean_weight.item()
        1.0
    """

    mean: Any
    mean_sq: Any
    mean_weight: Any
    mean_sq_weight: Any

    @classmethod
    def start(cls, like: Tensor) -> "NormHistory":
        """Return the history of nothing."""
        return cls(torch.zeros_like(like), torch.zeros_like(like), torch.ones_like(like), torch.ones_like(like))


def ada_grad_norm(
    norm: Any, history: NormHistory, gamma1: float, gamma2: float, eps: float = 1e-8
) -> tuple[NormHistory, Any]:
    """Return the history with one norm more, and the factor that normalises the gradient of that norm.

        m <- gamma1 m + (1 - gamma1) ||g||,    v <- gamma2 v + (1 - gamma2) ||g||^2
        factor = (m / c1) / (sqrt(v / c2) + eps) / ||g||,    c = 1 - product of the gammas so far;  1 where ||g|| = 0

    Paper: Huang et al., "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam" (2025).

    Deviations from the official code: it corrects with 1 - gamma^step of a step that starts over at each momentum
    reset, though m and v do not, and of a gamma1 that has changed since. Here both corrections are those of what m and
    v have really seen.

    Args:
        norm: l2 norms: a tensor, or a number.
        history: The same.
        gamma1: Decay rate of the mean.
        gamma2: Decay rate of the mean square.
        eps: Added to the square root.

    Returns:
        The new history, and what to multiply each gradient by.

    Example:
        >>> history, factor = ada_grad_norm(torch.tensor([4.0]), NormHistory.start(torch.zeros(1)), 0.7, 0.9)
        >>> round(factor.item(), 6)
        0.25
    """
    history = NormHistory(
        gamma1 * history.mean + (1 - gamma1) * norm,
        gamma2 * history.mean_sq + (1 - gamma2) * (norm * norm),
        gamma1 * history.mean_weight,
        gamma2 * history.mean_sq_weight,
    )
    typical = history.mean / (1 - history.mean_weight)
    spread = (history.mean_sq / (1 - history.mean_sq_weight)) ** 0.5 + eps
    if isinstance(norm, Tensor):
        return history, torch.where(norm > 0, typical / spread / norm, 1.0)
    return history, typical / spread / norm if norm > 0 else 1.0
