# SPDX-License-Identifier: Apache-2.0
"""Norms of many tensors at once, also of tensors whose shards lie on several ranks."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor


def tensor_norms(tensors: Sequence[Tensor], order: int = 2) -> Tensor:
    """Return the l2 or l1 norm of each tensor, of the whole one where it is sharded (DTensor).

        norm_i = sqrt(sum_j x_ij^2)        for order 2
        norm_i = sum_j |x_ij|              for order 1

    Taken in float32 at least; NaN and infinity show. One collective call for all tensors of a device mesh, on all of
    its ranks alike.

    Args:
        tensors: Of any shapes, precisions and devices.
        order: 2 or 1.

    Returns:
        One axis, float64, on the first tensor's device.

    Example:
        >>> tensor_norms([torch.tensor([3.0, 4.0]), torch.zeros(0), torch.tensor([[-2.0]])]).tolist()
        [5.0, 0.0, 2.0]
    """
    norms: list[Tensor] = [torch.zeros(())] * len(tensors)
    alike: dict[tuple[torch.device, torch.dtype], list[int]] = {}  # one kernel for all tensors of a kind
    for position, tensor in enumerate(tensors):
        alike.setdefault((tensor.device, tensor.dtype), []).append(position)
    for (_, dtype), positions in alike.items():
        parts = [local(tensors[position]) for position in positions]
        found = torch._foreach_norm(parts, order, dtype=torch.promote_types(dtype, torch.float32))
        for position, norm in zip(positions, found, strict=True):
            norms[position] = norm
    values = stacked(norms, tensors)
    if not any(_shards(tensor) for tensor in tensors):
        return values
    return reduce_over_shards(values.pow(order), tensors, dist.ReduceOp.SUM).pow(1 / order)


def tensor_maxima(tensors: Sequence[Tensor]) -> Tensor:
    """Return the largest size of an entry of each tensor, of the whole one where it is sharded (DTensor).

        max_i = max_j |x_ij|

    NaN and infinity show; an empty tensor has 0.

    Args:
        tensors: Of any shapes, precisions and devices.

    Returns:
        One axis, float64, on the first tensor's device.

    Example:
        >>> tensor_maxima([torch.tensor([3.0, -4.0]), torch.zeros(0)]).tolist()
        [4.0, 0.0]
    """
    parts = [local(tensor) for tensor in tensors]
    maxima = [_largest(part) if part.numel() else part.new_zeros(()) for part in parts]
    return reduce_over_shards(stacked(maxima, tensors), tensors, dist.ReduceOp.MAX)


def reduce_over_shards(values: Tensor, tensors: Sequence[Tensor], operation: Any) -> Tensor:
    """Combine one value per tensor over the ranks that hold the tensor's shards.

    Args:
        values: One axis, one value of this rank per tensor.
        tensors: The tensors; those that are not sharded keep their value.
        operation: What `torch.distributed.all_reduce` is to do, such as `ReduceOp.SUM`.

    Returns:
        The combined values, alike on all ranks.

    Example:
        >>> reduce_over_shards(torch.tensor([1.0]), [torch.zeros(3)], operation=None).tolist()
        [1.0]
    """
    together: dict[Any, list[int]] = {}
    for position, tensor in enumerate(tensors):
        if axes := _shards(tensor):
            together.setdefault((tensor.device_mesh, axes), []).append(position)  # pyright: ignore[reportAttributeAccessIssue]
    for (mesh, axes), positions in together.items():
        part = values[positions]
        for axis in axes:
            dist.all_reduce(part, operation, group=mesh.get_group(axis))
        values[positions] = part
    return values


def stacked(scalars: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Return one value per tensor as one axis of float64.

    Args:
        scalars: Tensors without axes.
        tensors: What they are of; the first says on which device.

    Example:
        >>> stacked([torch.tensor(1.0), torch.tensor(2.0)], [torch.zeros(1), torch.zeros(1)]).tolist()
        [1.0, 2.0]
    """
    if not scalars:
        return torch.zeros(0, dtype=torch.float64)
    device = tensors[0].device
    return torch.stack([scalar.to(device=device, dtype=torch.float64) for scalar in scalars])


def _largest(tensor: Tensor) -> Tensor:
    """Faster than `abs().max()` and `aminmax()`, and without a copy."""
    return torch.maximum(-tensor.amin(), tensor.amax())


def local(tensor: Any) -> Tensor:
    """Return the part of a sharded tensor (DTensor) that this process holds, or any other tensor itself.

    Args:
        tensor: Of any kind; what is returned shares its memory.

    Example:
        >>> tensor = torch.zeros(2)
        >>> local(tensor) is tensor
        True
    """
    return tensor.to_local() if hasattr(tensor, "to_local") else tensor


def _shards(tensor: Any) -> tuple[int, ...]:
    """The axes of its device mesh along which a tensor is sharded."""
    placements = getattr(tensor, "placements", ())  # strided shards do not call themselves shards, but have a `dim`
    return tuple(axis for axis, placement in enumerate(placements) if getattr(placement, "dim", None) is not None)


def copies_of(tensor: Tensor, world_size: int) -> float:
    """How many of `world_size` ranks hold the part of `tensor` that this one holds; all of them, if it has no shards.

    Example:
        >>> copies_of(torch.zeros(3), world_size=4)
        4.0
    """
    shards = 1
    for axis, placement in enumerate(getattr(tensor, "placements", ())):
        if getattr(placement, "dim", None) is not None:  # strided shards do not call themselves shards
            shards *= tensor.device_mesh.size(axis)  # pyright: ignore[reportAttributeAccessIssue]
    return world_size / shards
