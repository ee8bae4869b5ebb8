# SPDX-License-Identifier: Apache-2.0
"""Walk over a parameter, its gradient and its moments in flat chunks that stay in the processor's cache.

Everything that is done to a chunk finds it in the cache, and nothing temporary is larger than a chunk. On an
accelerator, where a launch costs more than a trip to memory, a chunk is the whole tensor. `Extent` is how large a chunk
of a gradient is.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_stable.functional.ada_clip import ada_clip

CHUNK = 2**19  # elements: 2 MB of float32, of which a few fit into a cache; fewer would cost more calls than they save

SMALL = 2**14  # elements; up to there, a call costs more than its arithmetic


def is_small(gradient: Tensor) -> bool:
    """Whether a gradient had better be worked on together with others: on the host alone, and if it is not empty.

    Args:
        gradient: Of a parameter.

    Example:
        >>> is_small(torch.zeros(10))
        True
    """
    return gradient.device.type == "cpu" and 0 < gradient.numel() <= min(SMALL, CHUNK)


def compute_dtype(parameter: Tensor) -> torch.dtype:
    """Return the precision an update is computed in: float32, or float64 for float64 parameters.

    Args:
        parameter: A floating-point tensor.

    Example:
        >>> compute_dtype(torch.zeros(1, dtype=torch.bfloat16))
        torch.float32
    """
    return torch.promote_types(parameter.dtype, torch.float32)


def flat_chunks(tensors: Sequence[Tensor], gradient: Tensor) -> Iterator[tuple[list[Tensor], Tensor]]:
    """Yield chunks of `tensors` to be changed in place, with the same chunk of `gradient` to be read.

    A chunk is a view where it can be. Where the memory is not contiguous, or of less precision than updates are
    computed in, it is a copy, and what was done to it is written back.

    Args:
        tensors: A parameter and what belongs to it, all of one size.
        gradient: Its gradient; what is yielded may be its own memory, so do not write to it.

    Example:
        >>> parameter, gradient = torch.zeros(2, 3), torch.ones(2, 3)
        >>> for (chunk,), gradient_chunk in flat_chunks([parameter], gradient):
        ...     _ = chunk.add_(gradient_chunk)
        >>> parameter.sum().item()
        6.0
    """
    dtype = compute_dtype(tensors[0] if tensors else gradient)
    size = CHUNK if gradient.device.type == "cpu" else max(1, gradient.numel())
    if gradient.numel() == 0:
        return
    if all(each.dtype == dtype and each.is_contiguous() for each in (*tensors, gradient)):
        whole = [each.view(-1) for each in (*tensors, gradient)]
        for *views, part in (
            [whole] if gradient.numel() <= size else zip(*(each.split(size) for each in whole), strict=True)
        ):
            yield views, part
        return
    flat = [each.contiguous().view(-1) for each in tensors]  # a copy of what is not contiguous
    flat_gradient = gradient.contiguous().view(-1)
    for start in range(0, gradient.numel(), size):
        chunk = slice(start, start + size)
        views = [each[chunk] for each in flat]
        copies = [view.to(dtype) for view in views]
        yield copies, flat_gradient[chunk].to(dtype)
        for view, copy in zip(views, copies, strict=True):
            if copy is not view:
                view.copy_(copy)
    for tensor, copy in zip(tensors, flat, strict=True):
        if not tensor.is_contiguous():
            tensor.copy_(copy.view(tensor.shape))


class Scratch:
    """Room for what is computed of a chunk, used again for the next: new memory costs more than the arithmetic.

    Example:
        >>> scratch = Scratch()
        >>> first = scratch.like(torch.ones(3))
        >>> scratch.like(torch.zeros(2)).data_ptr() == first.data_ptr()
        True
    """

    def __init__(self) -> None:
        self._rooms: dict[torch.dtype, Tensor] = {}

    def like(self, chunk: Tensor) -> Tensor:
        """Return a tensor like `chunk` with anything in it, whose memory is that of the one returned before.

        Args:
            chunk: One axis. On an accelerator, which keeps its memory by itself, the room is new.
        """
        if chunk.device.type != "cpu":
            return torch.empty_like(chunk)
        room = self._rooms.get(chunk.dtype)
        if room is None or room.numel() < chunk.numel():
            room = self._rooms[chunk.dtype] = torch.empty_like(chunk)
        return room[: chunk.numel()]


@dataclass(frozen=True, slots=True)
class Extent:
    """How large one chunk of a gradient is: numbers, or tensors where an accelerator keeps them.

    Args:
        largest: Size of the largest entry.
        square: Sum of squares.

    Example:
        >>> extent(torch.tensor([3.0, -4.0]))
        Extent(largest=4.0, square=25.0)
    """

    largest: Any
    square: Any


def extents(gradients: list[Tensor]) -> list[list[Extent]]:
    """Return how large each gradient is, chunk by chunk; the small ones are looked at in one go.

    Args:
        gradients: Of any shapes, on one device.

    Example:
        >>> extents([torch.tensor([[3.0], [-4.0]]), torch.zeros(1)])
        [[Extent(largest=4.0, square=25.0)], [Extent(largest=0.0, square=0.0)]]
    """
    small = [gradient.to(compute_dtype(gradient)) for gradient in gradients if is_small(gradient)]
    norms = (torch._foreach_norm(small, order) for order in (torch.inf, 2))
    found = iter(zip(*(torch.stack(each).tolist() for each in norms), strict=True)) if small else iter(())
    return [
        [Extent(largest, norm * norm) for largest, norm in [next(found)]]
        if is_small(gradient)
        else [extent(chunk) for _, chunk in flat_chunks([], gradient)]
        for gradient in gradients
    ]


def extent(chunk: Tensor) -> Extent:
    """Return how large a chunk is; the second look at it finds it in the cache.

    Args:
        chunk: One axis, contiguous.

    Example:
        >>> extent(torch.tensor([1.0, -2.0])).largest
        2.0
    """
    (low, high), square = chunk.aminmax(), torch.dot(chunk, chunk)
    if chunk.device.type == "cpu":  # max() would not see a NaN, but then `square` is one
        return Extent(max(-low.item(), high.item()), square.item())
    return Extent(torch.maximum(-low, high), square)


def clipped_square(gradient: Tensor, parts: list[Extent], threshold: Any, largest: Any, scratch: Scratch) -> Any:
    """Return the sum of squares of a gradient after AdaClip.

    Args:
        gradient: Not changed.
        parts: How large its chunks are.
        threshold: See `ada_clip`.
        largest: See `ada_clip`.
        scratch: Room for what is clipped.

    Example:
        >>> gradient = torch.tensor([3.0, -8.0])
        >>> clipped_square(gradient, [extent(gradient)], threshold=4.0, largest=8.0, scratch=Scratch())
        25.0
    """
    if gradient.device.type == "cpu" and not largest > threshold:
        return sum(part.square for part in parts)
    total = 0.0
    for (_, chunk), part in zip(flat_chunks([], gradient), parts, strict=True):
        if chunk.device.type == "cpu" and not part.largest > threshold:
            total = total + part.square
        else:
            clipped = ada_clip(chunk, threshold, largest, out=scratch.like(chunk))
            square = torch.dot(clipped, clipped)
            total = total + (square.item() if chunk.device.type == "cpu" else square.double())
    return total


def largest_of(parts: Sequence[Extent]) -> Any:
    """Return the largest entry of all chunks; 0 if there are none.

    Args:
        parts: Numbers, or a single one that an accelerator keeps.

    Example:
        >>> largest_of([Extent(1.0, 1.0), Extent(3.0, 9.0)])
        3.0
    """
    found = [part.largest for part in parts]
    return max(found) if all(isinstance(value, float) for value in found) and found else (found or [0.0])[0]
