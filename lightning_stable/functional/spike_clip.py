# SPDX-License-Identifier: Apache-2.0
"""SPAM's clipping of single entries against their own second moment."""

import torch
from torch import Tensor


def spike_clip(gradient: Tensor, exp_avg_sq: Tensor, threshold: float) -> Tensor:
    """Return a gradient whose entries are at most sqrt(threshold * v) in size.

        g <- sign(g) sqrt(threshold v)   where g^2 > threshold v and v > 0

    Paper: Huang et al., "SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training" (ICLR 2025).

    Deviations: the official code also "clips" to 0 where v = 0, and as v then stays 0, an entry that had no gradient
    for its first steps (the embedding of a rare token) never moves again. Here such an entry passes. An infinite
    entry is clipped like any other if v > 0; NaN stays NaN.

    Args:
        gradient: Any shape; not changed.
        exp_avg_sq: Second moment v of the same shape, from before this gradient.
        threshold: The largest ratio g^2 / v, such as SPAM's 5000.

    Returns:
        The gradient itself if nothing of it is clipped, else a new tensor.

    Example:
        >>> spike_clip(torch.tensor([9.0, -9.0, 9.0]), torch.tensor([100.0, 1.0, 0.0]), threshold=4.0).tolist()
        [9.0, -2.0, 9.0]
    """
    on_host = gradient.device.type == "cpu"  # there, a look at the values is worth more than it costs
    if on_host and _below(gradient, exp_avg_sq, threshold):
        return gradient
    limit = exp_avg_sq.mul(threshold).sqrt_()
    if not (on_host and bool(limit.amin() > 0)):
        limit.masked_fill_(limit == 0, torch.inf)
    return torch.clamp(gradient, limit.neg(), limit)


def _below(gradient: Tensor, exp_avg_sq: Tensor, threshold: float) -> bool:
    """Whether no entry can be above its limit; a cheap test, which NaN and entries with v = 0 do not pass."""
    excess = exp_avg_sq.mul(-threshold).addcmul_(gradient, gradient)
    return excess.numel() == 0 or bool(excess.amax() <= 0)
