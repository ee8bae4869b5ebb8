# SPDX-License-Identifier: Apache-2.0
"""Gradients without the part that only scales the weights."""

from collections.abc import Sequence

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_stable.functional.tensor_norms import local, reduce_over_shards, stacked, tensor_norms
from lightning_stable.transforms.shards import scale_, wide
from lightning_stable.transforms.transform import Member, Transform


class OrthogonalGradient(Transform):
    """Take from each gradient its part along the weights, and give the rest the norm that the gradient had (perpGrad).

        g_perp = g - (w.g / w.w) w
        g <- g_perp min(||g|| / ||g_perp||, max_gain)
        0 where ||g_perp|| <= 4 eps ||g||, eps = rounding of the gradient's precision;   g as it is where w = 0

    A network that fits its data can lower the loss for ever by growing its weights, until softmax rounds to 0 or 1 and
    learning stops. That direction is what this leaves out.

    Paper: Prieto et al., "Grokking at the Edge of Numerical Stability" (2025).

    Deviations from the official code: it wraps an optimizer and projects before the closure runs, which does nothing
    under Lightning, where the closure computes the gradients; and its `state_dict` is empty. This one changes gradients
    and leaves the optimizer alone. Matrices only (`min_ndim=2`), since what is left of a tensor with one entry is
    rounding noise; noise is set to 0 instead of being enlarged to ||g||; the gain has a cap; dot products are float32
    at least, and no 1e-30, which is 0 in float16, guards them.

    Args:
        min_ndim: Fewest axes of a tensor to be changed; 0 for all tensors, as in the paper.
        max_gain: Largest ||g|| / ||g_perp|| that is made up for. Late in training, where g is nearly along w, more of
            g_perp is noise; ours, ten times the largest gain of a network that groks. `inf` for the paper's.

    Raises:
        ValueError: If `min_ndim` is negative, `max_gain` is less than 1, or a gradient is sparse.

    Example:
        >>> parameter = torch.nn.Parameter(torch.tensor([[1.0, 0.0]]))
        >>> parameter.grad = torch.tensor([[3.0, 4.0]])
        >>> OrthogonalGradient().transform([parameter])
        >>> parameter.grad.tolist()
        [[0.0, 5.0]]
    """

    def __init__(self, min_ndim: int = 2, max_gain: float = 100.0) -> None:
        if not min_ndim >= 0:
            raise ValueError(f"`OrthogonalGradient(min_ndim=...)` must be at least 0, got {min_ndim}.")
        if not max_gain >= 1:
            raise ValueError(f"`OrthogonalGradient(max_gain=...)` must be at least 1, got {max_gain}.")
        self.min_ndim = min_ndim
        self.max_gain = max_gain

    def _transform(self, members: list[Member]) -> None:
        members = [member for member in members if member.gradient.ndim >= self.min_ndim]
        weights, gradients = [member.parameter for member in members], [member.gradient for member in members]
        norms = tensor_norms(gradients)
        shares = _dots(weights, gradients) / _dots(weights, weights)
        usable = shares.isfinite() & norms.isfinite()
        for weight, gradient, share in zip(weights, gradients, torch.where(usable, shares, 0.0), strict=True):
            _subtract_(local(gradient), local(weight), share)
        rests = tensor_norms(gradients)
        for gradient, norm, rest, is_usable in zip(gradients, norms, rests, usable & (norms > 0), strict=True):
            noise = 4 * torch.finfo(gradient.dtype).eps * norm
            gain = torch.where(rest > noise, (norm / rest).clamp(max=self.max_gain), 0.0)
            scale_(gradient, torch.where(is_usable, gain, 1.0))


def _dots(left: Sequence[Tensor], right: Sequence[Tensor]) -> Tensor:
    """The dot product of each pair, of the whole tensors where they are sharded.

    By `sum`, whose error does not grow with the size of the tensor; that of `torch.dot` is 200 roundings at ten million
    entries, which would pass for a gradient.
    """
    parts = [(local(one), local(other)) for one, other in zip(left, right, strict=True)]
    dots = [(one.to(wide(one)) * other.to(wide(other))).sum() for one, other in parts]
    return reduce_over_shards(stacked(dots, right), right, dist.ReduceOp.SUM)


def _subtract_(gradient: Tensor, weight: Tensor, share: Tensor) -> None:
    """Take `share` of the weight from the gradient, in float32 at least."""
    share = share.to(device=gradient.device, dtype=wide(gradient))
    if gradient.dtype == weight.dtype == share.dtype:
        gradient.addcmul_(weight, share, value=-1)
    else:
        gradient.copy_(gradient.to(share.dtype) - share * weight.to(share.dtype))
