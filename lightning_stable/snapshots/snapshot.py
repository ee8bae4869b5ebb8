# SPDX-License-Identifier: Apache-2.0
"""A copy of the whole training state in memory, into buffers that are allocated once."""

import copy
import math
from collections.abc import Hashable, Iterator
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_stable._lightning.trainer import callbacks_of
from lightning_stable.functional.tensor_norms import copies_of, local
from lightning_stable.snapshots.random_state import RandomState
from lightning_stable.snapshots.step_state import StepState
from lightning_stable.snapshots.transfer import Transfer, copy_in_order


class Move(NamedTuple):
    """By how much weights have moved.

    Example:
        >>> Move(norm=2.0, rms=0.5).norm
        2.0
    """

    norm: float  # l2
    rms: float


class Snapshot:
    """Parameters, optimizer state, the modules that other callbacks hold, and the `StepState` around them.

    Parameters and optimizer state change in the optimizer's step only, so their copies may still be under way when
    `capture` returns: whoever captures waits for `transfer` before the step. Everything else is copied at once. Of a
    sharded tensor this process copies its own shard.

    Memory: what the parameters and the optimizer state take (12 bytes a parameter for fp32 AdamW).

    Args:
        trainer: The trainer in its `fit`.
        pl_module: The module it trains.
        guard: The callback the snapshot is taken for.
        transfer: Makes the buffers and copies into them.
        with_callbacks: Whether what the other callbacks hold is copied; not for steps in which none of them is called.

    Example:
        >>> Snapshot.__name__  # needs a running fit; see `SpikeGuard`
        'Snapshot'
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        guard: Callback,
        transfer: Transfer,
        with_callbacks: bool = True,
    ) -> None:
        self._trainer = trainer
        self._transfer = transfer
        self._parameters = list(pl_module.parameters())
        self._others = list(tensors_of_callbacks(trainer, guard)) if with_callbacks else []
        self._parameter_copies = [transfer.buffer_like(local(tensor)) for tensor in self._parameters]
        self._other_copies = [transfer.buffer_like(local(tensor)) for tensor in self._others]
        self._optimizers = [_OptimizerCopy(optimizer, transfer) for optimizer in trainer.optimizers]
        self._around = StepState(trainer, pl_module, guard, with_callbacks)
        self.global_step = 0

    @torch.no_grad()
    def capture(self) -> None:
        """Begin to copy the training state as it is now."""
        self.global_step = self._trainer.global_step
        self._transfer.begin(self._parameter_copies, [local(tensor) for tensor in self._parameters])
        for optimizer in self._optimizers:
            optimizer.capture()
        copy_in_order(self._other_copies, [local(tensor) for tensor in self._others])
        self._around.capture()

    @torch.no_grad()
    def restore(self, count_skipped: bool = False) -> None:
        """Copy the training state back in place; with `count_skipped` schedules and step counters run on.

        The snapshot stays good.
        """
        self._restore_weights()
        self._around.restore(count_skipped)

    @torch.no_grad()
    def exchange(self) -> None:
        """Copy back what belongs to the model, while the run goes on, as `StepState.exchange` says."""
        self._restore_weights()
        self._around.exchange()

    def state_dict(self) -> dict[str, Any]:
        """A copy of what `exchange` puts back, in types that load with `weights_only=True` if the optimizer's do."""
        self._transfer.wait()
        return {
            "parameters": [tensor.clone() for tensor in self._parameter_copies],
            "others": [tensor.clone() for tensor in self._other_copies],
            "optimizers": [optimizer.state_dict() for optimizer in self._optimizers],
            "around": self._around.state_dict(),
        }

    @torch.no_grad()
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `exchange` is to put back.

        Raises:
            ValueError: If it is of another model.
        """
        _load(self._parameter_copies, state_dict["parameters"], "parameters")
        _load(self._other_copies, state_dict["others"], "modules of callbacks")
        for optimizer, state in zip(self._optimizers, state_dict["optimizers"], strict=True):
            optimizer.load_state_dict(state)
        self._around.load_state_dict(state_dict["around"])

    def wait(self) -> None:
        """The copies are complete before anything that the computation does from here on."""
        self._transfer.wait()

    @property
    def random(self) -> RandomState:
        """The random number generators as they were captured."""
        return self._around.random

    @torch.no_grad()
    def move(self) -> Move:
        """What the trained weights have moved by since the snapshot, which must be complete; over all ranks."""
        world_size = self._trainer.world_size
        totals = torch.zeros(2, dtype=torch.float64, device=self._trainer.strategy.root_device)
        for parameter, before in zip(self._parameters, self._parameter_copies, strict=True):
            if parameter.requires_grad:
                now = local(parameter)
                square = _norm(now - before.to(now.device)).square()
                totals += torch.stack([square, square.new_tensor(now.numel())]) / copies_of(parameter, world_size)
        if world_size > 1:
            dist.all_reduce(totals)
        square, count = totals.tolist()
        return Move(norm=math.sqrt(square), rms=math.sqrt(square / max(count, 1)))

    def restore_model(self) -> None:
        """Copy back parameters and buffers alone, for a look at them: who asks for it brings the present ones back."""
        self._transfer.wait()
        copy_in_order([local(tensor) for tensor in self._parameters], self._parameter_copies)
        self._around.restore_buffers()

    def _restore_weights(self) -> None:
        self._transfer.wait()
        copy_in_order([local(tensor) for tensor in self._parameters], self._parameter_copies)
        copy_in_order([local(tensor) for tensor in self._others], self._other_copies)
        for optimizer in self._optimizers:
            optimizer.restore()

    def allocate_optimizer_state(self) -> None:
        """Make the buffers for what the optimizers' first step has brought into being."""
        for optimizer in self._optimizers:
            optimizer.allocate()


def tensors_of_callbacks(trainer: Trainer, guard: Callback) -> Iterator[Tensor]:
    """Averaged weights and the like: `state_dict` of a callback need not hold its modules."""
    for callback in callbacks_of(trainer):
        for value in vars(callback).values() if callback is not guard else ():
            if isinstance(value, nn.Module) and not isinstance(value, LightningModule):
                yield from value.parameters()
                yield from value.buffers()


class _TensorCopy(NamedTuple):
    buffer: Tensor
    device: torch.device  # of the tensor that was copied


class _OptimizerCopy:
    """The state of one optimizer; a buffer that was made once is kept for as long as it fits."""

    def __init__(self, optimizer: Optimizer, transfer: Transfer) -> None:
        self._optimizer = optimizer
        self._transfer = transfer
        self._buffers: dict[tuple[Hashable, str], Tensor] = {}
        self._saved: dict[Hashable, Any] = {}

    def allocate(self) -> None:
        for key, entry in self._optimizer.state.items():
            for name, value in entry.items() if isinstance(entry, dict) else ():
                if isinstance(value, Tensor):
                    self._buffer(key, name, local(value))

    def capture(self) -> None:
        self._saved = {}
        sources, copies = [], []
        for key, entry in self._optimizer.state.items():
            if not isinstance(entry, dict):
                self._saved[key] = copy.deepcopy(entry)
                continue
            self._saved[key] = saved = {}
            for name, value in entry.items():
                if not isinstance(value, Tensor):
                    saved[name] = copy.deepcopy(value)
                    continue
                sources.append(local(value))
                copies.append(self._buffer(key, name, sources[-1]))
                saved[name] = _TensorCopy(copies[-1], sources[-1].device)
        self._transfer.begin(copies, sources)

    def restore(self) -> None:
        state: Any = self._optimizer.state
        for key in [key for key in state if key not in self._saved]:
            del state[key]  # born after the snapshot
        for key, entry in self._saved.items():
            if not isinstance(entry, dict):
                state[key] = copy.deepcopy(entry)
                continue
            current = state.setdefault(key, {})
            for name in [name for name in current if name not in entry]:
                del current[name]
            for name, value in entry.items():
                current[name] = _restored(current.get(name), value)

    def state_dict(self) -> dict[Hashable, Any]:
        """By the number of the parameter; what is not by parameter keeps its own key."""
        numbers: dict[Any, int] = {parameter: number for number, parameter in enumerate(self._own_parameters())}
        return {
            numbers.get(key, key): {name: _plain(value) for name, value in entry.items()}
            if isinstance(entry, dict)
            else copy.deepcopy(entry)
            for key, entry in self._saved.items()
        }

    def load_state_dict(self, state_dict: dict[Hashable, Any]) -> None:
        parameters, self._saved = self._own_parameters(), {}
        for number, entry in state_dict.items():
            key: Any = parameters[number] if isinstance(number, int) else number
            self._saved[key] = self._taken_up(key, entry) if isinstance(entry, dict) else copy.deepcopy(entry)

    def _taken_up(self, key: Any, entry: dict[str, Any]) -> dict[str, Any]:
        now, home = self._optimizer.state.get(key, {}), key.device if isinstance(key, Tensor) else torch.device("cpu")
        taken = {}
        for name, value in entry.items():
            if not isinstance(value, Tensor):
                taken[name] = copy.deepcopy(value)
                continue
            here = now.get(name)
            device = here.device if isinstance(here, Tensor) else home if value.ndim else torch.device("cpu")
            taken[name] = _TensorCopy(self._buffer(key, name, value.to(device)), device)
            taken[name].buffer.copy_(value)
        return taken

    def _own_parameters(self) -> list[Tensor]:
        return [parameter for group in self._optimizer.param_groups for parameter in group["params"]]

    def _buffer(self, key: Hashable, name: str, value: Tensor) -> Tensor:
        buffer = self._buffers.get((key, name))
        if buffer is None or (buffer.shape, buffer.dtype) != (value.shape, value.dtype):
            buffer = self._buffers[key, name] = self._transfer.buffer_like(value)
        return buffer


def _load(copies: list[Tensor], tensors: list[Tensor], what: str) -> None:
    if [copy.shape for copy in copies] != [tensor.shape for tensor in tensors]:
        raise ValueError(f"its {what} are not those of the model")
    for buffer, tensor in zip(copies, tensors, strict=True):
        buffer.copy_(tensor)


def _plain(value: Any) -> Any:
    return value.buffer.clone() if isinstance(value, _TensorCopy) else copy.deepcopy(value)


def _norm(tensor: Tensor) -> Tensor:
    return torch.linalg.vector_norm(tensor, dtype=torch.promote_types(tensor.dtype, torch.float32)).double()


def _restored(current: Any, saved: Any) -> Any:
    if not isinstance(saved, _TensorCopy):
        return copy.deepcopy(saved)
    if not isinstance(current, Tensor) or local(current).shape != saved.buffer.shape:
        return saved.buffer.to(saved.device, copy=True)
    copy_in_order([local(current)], [saved.buffer])
    return current
