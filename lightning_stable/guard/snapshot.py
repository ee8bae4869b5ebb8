# SPDX-License-Identifier: Apache-2.0
"""A copy of the whole training state in memory, into buffers that are allocated once."""

import copy
from collections.abc import Hashable, Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn

from lightning_stable._lightning.trainer import callbacks_of
from lightning_stable.guard.step_state import StepState


class Snapshot:
    """Parameters, optimizer state, the modules that other callbacks hold, and the `StepState` around them.

    Memory: what the parameters and the optimizer state take (12 bytes a parameter for fp32 AdamW), on their device.

    Args:
        trainer: The trainer in its `fit`.
        pl_module: The module it trains.
        guard: The callback the snapshot is taken for.

    Example:
        >>> Snapshot.__name__  # needs a running fit; see `SpikeGuard`
        'Snapshot'
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, guard: Callback) -> None:
        self._trainer = trainer
        others = [callback for callback in callbacks_of(trainer) if callback is not guard]
        self._tensors = [*pl_module.parameters(), *_tensors_of_callbacks(others)]
        self._copies = [torch.empty_like(tensor, requires_grad=False) for tensor in self._tensors]
        self._optimizer_states: list[dict[Hashable, dict[str, Any]]] = [{} for _ in trainer.optimizers]
        self._around = StepState(trainer, pl_module, guard)
        self.global_step = 0

    @torch.no_grad()
    def capture(self) -> None:
        """Copy the training state as it is now."""
        self.global_step = self._trainer.global_step
        if self._tensors:
            torch._foreach_copy_(self._copies, self._tensors)
        for optimizer, saved in zip(self._trainer.optimizers, self._optimizer_states, strict=True):
            _capture_state(optimizer.state, saved)
        self._around.capture()

    @torch.no_grad()
    def restore(self) -> None:
        """Copy the training state back in place; the snapshot stays good."""
        if self._tensors:
            torch._foreach_copy_(self._tensors, self._copies)
        for optimizer, saved in zip(self._trainer.optimizers, self._optimizer_states, strict=True):
            _restore_state(optimizer.state, saved)
        self._around.restore()


def _tensors_of_callbacks(callbacks: list[Callback]) -> Iterator[Tensor]:
    """Averaged weights and the like: `state_dict` of a callback need not hold its modules."""
    for callback in callbacks:
        for value in vars(callback).values():
            if isinstance(value, nn.Module) and not isinstance(value, LightningModule):
                yield from value.parameters()
                yield from value.buffers()


def _capture_state(state: dict[Any, Any], saved: dict[Hashable, Any]) -> None:
    for key in [key for key in saved if key not in state]:
        del saved[key]
    sources, copies = [], []
    for key, entry in state.items():
        if not isinstance(entry, dict):
            saved[key] = copy.deepcopy(entry)
            continue
        old = saved.get(key, {})
        saved[key] = new = {}
        for name, value in entry.items():
            if not isinstance(value, Tensor):
                new[name] = copy.deepcopy(value)
                continue
            new[name] = _buffer_like(value, old.get(name))
            sources.append(value)
            copies.append(new[name])
    if sources:
        torch._foreach_copy_(copies, sources)


def _buffer_like(value: Tensor, old: Any) -> Tensor:
    fits = isinstance(old, Tensor) and (old.shape, old.dtype, old.device) == (value.shape, value.dtype, value.device)
    return old if fits else torch.empty_like(value)


def _restore_state(state: dict[Any, Any], saved: dict[Hashable, Any]) -> None:
    for key in [key for key in state if key not in saved]:
        del state[key]  # born after the snapshot
    for key, entry in saved.items():
        if not isinstance(entry, dict):
            state[key] = copy.deepcopy(entry)
            continue
        current = state[key]
        for name in [name for name in current if name not in entry]:
            del current[name]
        for name, value in entry.items():
            if isinstance(value, Tensor) and isinstance(current.get(name), Tensor):
                current[name].copy_(value)
            else:
                current[name] = copy.deepcopy(value)
