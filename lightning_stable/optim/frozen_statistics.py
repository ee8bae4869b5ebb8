# SPDX-License-Identifier: Apache-2.0
"""Let a forward pass leave no trace in the running statistics of norm layers, with no module at hand."""

import weakref
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.modules.module import register_module_forward_pre_hook
from torch.utils.hooks import RemovableHandle


class FrozenStatistics:
    """From `freeze()` to `restore()`, running statistics move as ever; then they are put back, bit for bit.

    A hook on all modules keeps, before a module first runs, a copy of the buffers in it that are named `running_...`
    or `num_batches_tracked`, as torch names them. So whatever momentum or mode a module has, it works as ever, and
    activation checkpoints may run it anew in the backward pass: `restore()` comes after that.

    Deviations: a module that is never called, neither itself nor one that holds it, is not seen. Modules that run in
    other threads meanwhile are. `torch.compile(module)` warns of the hook once; it does no harm.

    Example:
        >>> layer, statistics = nn.BatchNorm1d(2), FrozenStatistics()
        >>> statistics.freeze()
        >>> out = layer(torch.randn(3, 2))
        >>> statistics.restore()
        >>> layer.running_mean.tolist(), layer.num_batches_tracked.item()
        ([0.0, 0.0], 0)
    """

    def __init__(self) -> None:
        self._kept: list[tuple[dict[str, Any], str, Tensor, Tensor]] = []
        self._seen: set[nn.Module] = set()
        self._hook: RemovableHandle | None = None

    def freeze(self) -> None:
        """Begin to watch what runs."""
        if self._hook is None:
            weak = weakref.WeakMethod(self._remember)  # so that one that is forgotten takes its hook along
            self._hook = register_module_forward_pre_hook(lambda module, _: call(module) if (call := weak()) else None)

    @torch.no_grad()
    def restore(self) -> None:
        """Put back what ran since, and watch no longer."""
        if self._hook is not None:
            self._hook.remove()
            self._hook = None
        for buffers, name, buffer, before in self._kept:
            buffers[name] = buffer.copy_(before)  # a module may have bound a new tensor to the name
        self._kept.clear()
        self._seen.clear()

    def __del__(self) -> None:
        if self._hook is not None:
            self._hook.remove()

    def _remember(self, module: nn.Module) -> None:
        if module in self._seen:
            return
        for each in module.modules():  # not the one alone: inside of a compiled module hooks are not called
            if each not in self._seen:
                self._seen.add(each)
                self._keep(each)

    def _keep(self, module: nn.Module) -> None:
        for name, buffer in module._buffers.items():
            if buffer is not None and (name.startswith("running_") or name == "num_batches_tracked"):
                self._kept.append((module._buffers, name, buffer, buffer.detach().clone()))
