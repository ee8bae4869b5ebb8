# SPDX-License-Identifier: Apache-2.0
"""Stable-SPAM's adaptive spike-aware clipping of single entries."""

from typing import Any

import torch
from torch import Tensor


def ada_clip(gradient: Tensor, threshold: float | Tensor, largest: float | Tensor, out: Tensor | None = None) -> Tensor:
    """Return a gradient whose entries above `threshold` are scaled by threshold / largest.

        g_i <- g_i threshold / max_j |g_j|   where |g_i| > threshold

    Paper: Huang et al., "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam" (2025).

    Deviations: none. It is a scaling, not a clamp: an entry just above the threshold ends well below it, and the order
    of the clipped entries stays.

    Args:
        gradient: Any shape, finite; not changed.
        threshold: Largest size of an entry that is left alone; a tensor where the device is to keep it.
        largest: Size of the largest entry, of the whole tensor if this is a part of it.
        out: Where to put it, if not into a new tensor.

    Example:
        >>> ada_clip(torch.tensor([1.0, -4.0, 8.0]), threshold=2.0, largest=8.0).tolist()
        [1.0, -1.0, 2.0]
    """
    if isinstance(threshold, Tensor) or isinstance(largest, Tensor):
        return torch.where(gradient.abs() > threshold, gradient * (threshold / largest), gradient, out=out)
    above = torch.nn.functional.hardshrink(gradient, threshold)  # quicker than `where`: no booleans
    return torch.sub(gradient, above, out=out).add_(above, alpha=threshold / largest)


def ada_clip_threshold(largest: Any, mean: Any, step: Any, theta: float) -> tuple[Any, Any]:
    """Return the running mean of the largest entry, and the threshold that follows from it.

        M <- theta M + (1 - theta) max|g|,    threshold = M / (1 - theta^step)

    Paper: Huang et al., "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam" (2025).

    Deviations from the official code: it divides by 1 - theta^step of a step that starts over at each momentum reset,
    though M does not, which multiplies the threshold by up to 1000 and so switches clipping off for hundreds of steps
    after each reset. Here `step` counts what M has seen.

    Args:
        largest: max|g| of this step: a tensor, or a number.
        mean: M, the same.
        step: Gradients that M has seen, this one included; the same.
        theta: Decay rate.

    Returns:
        The new M and the threshold.

    Example:
        >>> mean, threshold = ada_clip_threshold(torch.tensor(4.0), torch.tensor(0.0), torch.tensor(1.0), theta=0.5)
        >>> mean.item(), threshold.item()
        (2.0, 4.0)
    """
    mean = theta * mean + (1 - theta) * largest
    return mean, mean / (1 - theta**step)
