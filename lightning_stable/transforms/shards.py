# SPDX-License-Identifier: Apache-2.0
"""The part of a gradient that this process holds, and what the other parts must be asked for."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from lightning_stable.functional.tensor_norms import local, reduce_over_shards, stacked


def wide(tensor: Tensor) -> torch.dtype:
    """Return the precision to compute with: the tensor's own, but float32 at least.

    Args:
        tensor: Of any floating precision.

    Example:
        >>> wide(torch.zeros(1, dtype=torch.bfloat16)), wide(torch.zeros(1, dtype=torch.float64))
        (torch.float32, torch.float64)
    """
    return torch.promote_types(tensor.dtype, torch.float32)


def scale_(tensor: Tensor, factor: Tensor) -> None:
    """Multiply a tensor in place, in float32 at least; a factor of 1 leaves every bit, NaN included, as it is.

    Args:
        tensor: Maybe sharded.
        factor: One number, or one per row that this process holds.

    Example:
        >>> tensor = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> scale_(tensor, torch.tensor([10.0, 1.0]))
        >>> tensor.tolist()
        [[10.0, 20.0], [3.0, 4.0]]
    """
    part = local(tensor)
    if factor.device.type == "cpu" and bool((factor == 1).all()):
        return
    shape = [-1] + [1] * (part.ndim - 1) if part.ndim else []
    part.mul_(factor.to(device=part.device, dtype=wide(part)).reshape(shape))


def sum_over_rows(sums: Tensor, tensor: Any) -> Tensor:
    """Complete sums over the rows of a tensor where the rows themselves are cut: sharded along another axis than 0.

    Args:
        sums: Over the part of each row that this process holds; changed in place.
        tensor: What was summed.

    Returns:
        The sums over whole rows, of those rows that this process holds a part of.

    Example:
        >>> sum_over_rows(torch.tensor([3.0, 7.0]), torch.tensor([[1.0, 2.0], [3.0, 4.0]])).tolist()
        [3.0, 7.0]
    """
    for axis, placement in enumerate(getattr(tensor, "placements", ())):
        if getattr(placement, "dim", 0) != 0:
            dist.all_reduce(sums, dist.ReduceOp.SUM, group=tensor.device_mesh.get_group(axis))
    return sums


def all_finite(values: Sequence[Tensor], tensors: Sequence[Tensor]) -> Tensor:
    """Say of each tensor whether all that was computed from it, on all ranks that hold a part, is finite.

    Args:
        values: One tensor of any shape per tensor.
        tensors: What they were computed from.

    Returns:
        One axis of booleans.

    Example:
        >>> all_finite([torch.ones(2), torch.tensor([1.0, torch.nan])], [torch.zeros(2), torch.zeros(2)]).tolist()
        [True, False]
    """
    flags = stacked([value.isfinite().all() for value in values], tensors)
    return reduce_over_shards(flags, tensors, dist.ReduceOp.MIN) > 0
