# SPDX-License-Identifier: Apache-2.0
"""Copies that run beside the computation, into buffers that are allocated once."""

from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor


class Transfer:
    """Copy tensors while training goes on, and wait before anything that is being copied may change.

    On CUDA a stream of its own waits for the work queued so far and then copies; `wait` lets the computation's stream,
    and not the host, wait for it. Anywhere else a copy is over when `begin` returns, and `wait` is nothing.

    Args:
        to: Where copies of CUDA tensors live: `device`, or `host` for pinned memory. Copies of CPU tensors live beside
            them either way.

    Example:
        >>> transfer, weight = Transfer("host"), torch.ones(3)
        >>> copy = transfer.buffer_like(weight)
        >>> transfer.begin([copy], [weight])
        >>> transfer.wait()  # from here on `weight` may change
        >>> copy.tolist()
        [1.0, 1.0, 1.0]
    """

    def __init__(self, to: Literal["device", "host"]) -> None:
        self._to_host = to == "host"
        self._streams: dict[torch.device, torch.cuda.Stream] = {}
        self._pending: set[torch.device] = set()

    def buffer_like(self, tensor: Tensor) -> Tensor:
        """Memory for a copy of `tensor`."""
        if self._to_host and tensor.is_cuda:
            return torch.empty_like(tensor, device="cpu", requires_grad=False, pin_memory=True)
        return torch.empty_like(tensor, requires_grad=False)

    @torch.no_grad()
    def begin(self, copies: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
        """Begin to copy `sources`, which must not change before `wait`."""
        for device in {source.device for source in sources}:
            pairs = [pair for pair in zip(copies, sources, strict=True) if pair[1].device == device]
            if device.type != "cuda":
                torch._foreach_copy_([copy for copy, _ in pairs], [source for _, source in pairs])
                continue
            if device not in self._streams:
                self._streams[device] = torch.cuda.Stream(device)
            stream = self._streams[device]
            stream.wait_stream(torch.cuda.current_stream(device))
            with torch.cuda.stream(stream):
                for copy, source in pairs:
                    copy.copy_(source, non_blocking=True)
                    source.record_stream(stream)  # whoever frees it must not hand it out while it is being read
            self._pending.add(device)

    def wait(self) -> None:
        """Whatever the computation does from here on happens after the copies."""
        for device in self._pending:
            torch.cuda.current_stream(device).wait_stream(self._streams[device])
        self._pending.clear()


@torch.no_grad()
def copy_in_order(copies: Sequence[Tensor], sources: Sequence[Tensor]) -> None:
    """Copy `sources` as they are now, between what the computation has done so far and what it does next.

    Example:
        >>> copy = torch.zeros(2)
        >>> copy_in_order([copy], [torch.ones(2)])
        >>> copy.tolist()
        [1.0, 1.0]
    """
    on_device = [pair for pair in zip(copies, sources, strict=True) if pair[0].is_cuda or pair[1].is_cuda]
    on_host = [pair for pair in zip(copies, sources, strict=True) if not (pair[0].is_cuda or pair[1].is_cuda)]
    for copy, source in on_device:
        copy.copy_(source, non_blocking=True)
    if on_host:
        torch._foreach_copy_([copy for copy, _ in on_host], [source for _, source in on_host])
