# SPDX-License-Identifier: Apache-2.0
"""What an optimizer keeps between steps, and what it needs on top of that within one."""

import gc
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd.profiler import profile
from torch.optim import Optimizer


def state_bytes(optimizer: Optimizer) -> int:
    """Return the bytes of all memory that `optimizer.state` holds on to, counting what is shared once.

    Args:
        optimizer: Any, after its first step.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(100))
        >>> parameter.grad = torch.ones(100)
        >>> optimizer = torch.optim.AdamW([parameter])
        >>> optimizer.step()
        >>> state_bytes(optimizer)  # two moments, and the number of steps
        804
    """
    storages = (tensor.untyped_storage() for tensor in _tensors(dict(optimizer.state)))
    return sum({storage.data_ptr(): storage.nbytes() for storage in storages}.values())


def peak_extra_bytes(run: Callable[[], object], device: torch.device) -> int:
    """Run something, and return by how much torch's memory on `device` rose above what it was before, at its highest.

    On CPU every allocation of torch is recorded, those within an operation too. Memory from before that is given back
    while it runs is not seen there. CUDA counts by itself, in blocks of 512 bytes.

    Args:
        run: To be measured, such as an optimizer's `step`.
        device: CPU or CUDA.

    Example:
        >>> peak_extra_bytes(lambda: torch.zeros(100), torch.device("cpu"))
        400
    """
    return _peak_on_cuda(run, device) if device.type == "cuda" else _peak_on_cpu(run)


def _peak_on_cpu(run: Callable[[], object]) -> int:
    os.environ.setdefault("KINETO_LOG_LEVEL", "9")  # or it says on stderr that it starts and stops
    gc.collect()  # garbage from before would be given back while it runs
    recorder: Any = profile(profile_memory=True)
    with recorder:
        run()
    records = [event for event in recorder.kineto_results.events() if event.name() == "[memory]"]
    now = highest = 0
    for record in sorted(records, key=lambda record: record.start_ns()):
        now += record.nbytes()
        highest = max(highest, now)
    return highest


def _peak_on_cuda(run: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    run()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _tensors(holder: Any) -> Iterator[Tensor]:
    if isinstance(holder, Tensor):
        yield holder
    elif isinstance(holder, dict):
        for value in holder.values():
            yield from _tensors(value)
    elif isinstance(holder, (list, tuple)):
        for value in holder:
            yield from _tensors(value)
