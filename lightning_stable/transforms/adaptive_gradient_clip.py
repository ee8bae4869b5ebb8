# SPDX-License-Identifier: Apache-2.0
"""NFNets' clipping of each unit's gradient against the unit's weights."""

import math
import re
from collections.abc import Iterable, Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_stable.functional.tensor_norms import local, reduce_over_shards, stacked, tensor_norms
from lightning_stable.transforms.shards import all_finite, scale_, sum_over_rows, wide
from lightning_stable.transforms.transform import Member, Transform


class AdaptiveGradientClip(Transform):
    """Limit the norm of each unit's gradient to a share of the norm of the unit's weights.

        G_i <- G_i clipping max(||W_i||, eps) / ||G_i||     where ||G_i|| > clipping max(||W_i||, eps)

    A unit i is what flows into one output: a row of a matrix, a filter of a convolution, all axes but the first. A
    tensor with one axis or none (bias, gain) is one unit.

    Paper: Brock et al., "High-Performance Large-Scale Image Recognition Without Normalization" (ICML 2021).

    Deviations from the official code: units are those of torch's layout, so for `Conv1d` all axes but the first too;
    ||G_i|| has no floor of 1e-6. Norms are float32 at least, and reduced where a tensor is sharded.

    The paper leaves the last layer out. A transform sees tensors without names, so somebody has to tell it:
    `GradientTransforms` does, by `exclude`; in a loop of your own, call `exclude_parameters(model.head.parameters())`.
    Otherwise nothing is excluded.

    `clip_rate` is the share of the units, excluded ones aside, that were clipped in the last call.

    Args:
        clipping: Largest ||G_i|| / ||W_i||; the paper takes 0.01 for batches of 4096, and up to 0.16 for smaller ones.
        eps: Norm that weights have at least, so that those that start at 0 can move; the paper's value.
        exclude: Which parameters are never clipped: roles, as of `parameter_roles`, or regular expressions for
            whole names, such as `"classifier.*"`.

    Raises:
        ValueError: If `clipping` or `eps` is not larger than 0, or a gradient is sparse.
        TypeError: If `exclude` is one string.

    Example:
        >>> parameter = torch.nn.Parameter(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        >>> parameter.grad = torch.tensor([[6.0, 8.0], [0.0, 0.05]])
        >>> transform = AdaptiveGradientClip(clipping=0.5, eps=0.125)
        >>> transform.transform([parameter])
        >>> parameter.grad.tolist(), transform.clip_rate.item()
        ([[1.5, 2.0], [0.0, 0.05000000074505806]], 0.5)
    """

    def __init__(self, clipping: float = 0.01, eps: float = 1e-3, exclude: tuple[str, ...] = ("head",)) -> None:
        for name, value in (("clipping", clipping), ("eps", eps)):
            if not value > 0:
                raise ValueError(f"`AdaptiveGradientClip({name}=...)` must be larger than 0, got {value}.")
        if isinstance(exclude, str):
            raise TypeError(
                f"`AdaptiveGradientClip(exclude=...)` must be a tuple of strings, got {exclude!r}. "
                f"Write `exclude=({exclude!r},)`."
            )
        self.clipping = clipping
        self.eps = eps
        self.exclude = tuple(exclude)
        self._excluded: list[Tensor] = []

    def excludes(self, name: str, role: str) -> bool:
        """Say whether `exclude` names this parameter, by its role or by a pattern of its name."""
        return any(entry == role or re.fullmatch(entry, name) is not None for entry in self.exclude)

    def exclude_parameters(self, params: Iterable[Tensor]) -> None:
        """Never clip these very tensors; those named in an earlier call are clipped again."""
        self._excluded = list(params)

    def _transform(self, members: list[Member]) -> None:
        excluded = {id(parameter) for parameter in self._excluded}
        members = [member for member in members if id(member.parameter) not in excluded]
        gradients = [member.gradient for member in members]
        norms, weights = _unit_norms(gradients), _unit_norms([member.parameter for member in members])
        clipped = []
        for gradient, norm, weight, healthy in zip(
            gradients, norms, weights, all_finite(norms, gradients), strict=True
        ):
            limit = self.clipping * weight.clamp(min=self.eps)
            above = (norm > limit) & healthy.to(norm.device)
            scale_(gradient, torch.where(above, limit / norm, 1.0))
            clipped.append(above)
        self.clip_rate = _clip_rate(clipped, gradients)


def _unit_norms(tensors: Sequence[Tensor]) -> list[Tensor]:
    """For each tensor the norms of those units that this process holds a part of, of the whole units."""
    vectors = iter(tensor_norms([tensor for tensor in tensors if tensor.ndim < 2]))
    return [_row_norms(tensor) if tensor.ndim >= 2 else next(vectors)[None] for tensor in tensors]


def _row_norms(tensor: Tensor) -> Tensor:
    part = local(tensor)
    norms = torch.linalg.vector_norm(part, dim=tuple(range(1, part.ndim)), dtype=wide(part))
    return sum_over_rows(norms.square_(), tensor).sqrt_()


def _clip_rate(clipped: Sequence[Tensor], gradients: Sequence[Any]) -> Tensor:
    """The share of all units, on all ranks, that were clipped."""
    counts = [flags.sum() / _ranks_per_unit(gradient) for flags, gradient in zip(clipped, gradients, strict=True)]
    units = sum(gradient.shape[0] if gradient.ndim >= 2 else 1 for gradient in gradients)
    return reduce_over_shards(stacked(counts, gradients), gradients, dist.ReduceOp.SUM).sum() / max(1, units)


def _ranks_per_unit(tensor: Any) -> int:
    """How many ranks hold a part of each unit, and so count it."""
    axes = enumerate(getattr(tensor, "placements", ()))
    cuts = [axis for axis, placement in axes if hasattr(placement, "dim") and (placement.dim != 0 or tensor.ndim < 2)]
    return math.prod(tensor.device_mesh.size(axis) for axis in cuts)
