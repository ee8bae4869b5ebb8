# SPDX-License-Identifier: Apache-2.0
"""Walk over a parameter, its gradient and its moments in flat chunks that stay in the processor's cache.

Everything that is done to a chunk finds it in the cache, and nothing temporary is larger than a chunk. On an
accelerator, where a launch costs more than a trip to memory, a chunk is the whole tensor.
"""

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

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
