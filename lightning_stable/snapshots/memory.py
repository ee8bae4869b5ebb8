# SPDX-License-Identifier: Apache-2.0
"""How much memory the snapshots will take, known before they are made."""

import os
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable.functional.tensor_norms import local
from lightning_stable.snapshots.snapshot import tensors_of_callbacks

# Tensors of a parameter's size in the state of optimizers that keep other than two, by their class's name.
_MOMENTS = {"ASGD": 1, "Adagrad": 1, "Adafactor": 0, "Lion": 1, "Muon": 1, "SparseAdam": 2}


@dataclass(frozen=True)
class SnapshotMemory:
    """What the snapshots take, in bytes, on this process.

    Counted are parameters, optimizer state, buffers, and the modules that other callbacks hold. Not counted are the
    batches that are kept for a replay, states of metrics and other small things.

    Args:
        slots: How many snapshots are kept.
        per_slot: Bytes of one.
        is_estimate: Whether optimizer state was guessed from the kind of optimizer, before its first step.

    Example:
        >>> SnapshotMemory(slots=2, per_slot=12_000_000, is_estimate=True).total
        24000000
        >>> str(SnapshotMemory(slots=2, per_slot=12_000_000, is_estimate=True))
        '2 of about 12.0 MB'
    """

    slots: int
    per_slot: int
    is_estimate: bool

    @property
    def total(self) -> int:
        """Bytes of all slots together."""
        return self.slots * self.per_slot

    def refuse_more_than(self, max_bytes: int | None) -> None:
        """Raise a `ValueError` if the snapshots take more than `max_bytes`."""
        if max_bytes is None or self.total <= max_bytes:
            return
        about = "about " if self.is_estimate else ""
        raise ValueError(
            f"`SpikeGuard(max_bytes=...)` allows {max_bytes:,} bytes, and the {self.slots} snapshots that are kept need"
            f" {about}{self.total:,}, {self.per_slot:,} each. Allow more, keep fewer (`snapshots`), or use a `ladder`"
            " that does not go back, without `Rollback` and `SkipData`."
        )

    def __str__(self) -> str:
        return f"{self.slots} of {'about ' if self.is_estimate else ''}{_readable(self.per_slot)}"


def snapshot_memory(trainer: Trainer, pl_module: LightningModule, guard: Callback, slots: int) -> SnapshotMemory:
    """What `slots` snapshots of the training state take, as far as it is known.

    Example:
        >>> snapshot_memory.__name__  # needs a running fit; see `SpikeGuard`
        'snapshot_memory'
    """
    tensors = [*pl_module.parameters(), *pl_module.buffers(), *tensors_of_callbacks(trainer, guard)]
    states = [_state_bytes(optimizer) for optimizer in trainer.optimizers]
    return SnapshotMemory(
        slots=slots,
        per_slot=_bytes(tensors) + sum(size for size, _ in states),
        is_estimate=any(is_estimate for _, is_estimate in states),
    )


def memory_share(trainer: Trainer, needed: int, on_host: bool) -> float:
    """The share that `needed` bytes are of the memory of the machine, or of the model's device; 0 if nobody can tell.

    Example:
        >>> memory_share.__name__  # needs a Trainer
        'memory_share'
    """
    device = trainer.strategy.root_device
    if device.type == "cuda" and not on_host:
        return needed / torch.cuda.get_device_properties(device).total_memory
    if not hasattr(os, "sysconf"):  # Windows
        return 0.0
    return needed / (os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))


def _state_bytes(optimizer: Optimizer) -> tuple[int, bool]:
    """Bytes of the optimizer's state, and whether that is a guess."""
    entries = [entry for entry in optimizer.state.values() if isinstance(entry, dict)]
    tensors = [value for entry in entries for value in entry.values() if isinstance(value, Tensor)]
    if tensors:
        return _bytes(tensors), False
    guess = sum(
        _moments(optimizer, group) * _bytes(p for p in group["params"] if p.requires_grad)
        for group in optimizer.param_groups
    )
    return guess, guess > 0


def _moments(optimizer: Optimizer, group: dict[str, object]) -> int:
    """How many tensors of a parameter's size a step keeps: two, as Adam does, unless its kind is known to differ."""
    name = type(optimizer).__name__
    if name in ("SGD", "SAM") and "betas" not in group:
        return int(bool(group.get("momentum")))
    if name == "RMSprop":
        return 1 + bool(group["centered"]) + bool(group["momentum"])
    return _MOMENTS.get(name, 2 + bool(group.get("amsgrad")))


def _bytes(tensors: Iterable[Tensor]) -> int:
    return sum(local(tensor).nbytes for tensor in tensors)


def _readable(size: int) -> str:
    amount = float(size)
    for unit in ("bytes", "kB", "MB"):
        if amount < 1000:
            return f"{size} bytes" if unit == "bytes" else f"{amount:.1f} {unit}"
        amount /= 1000
    return f"{amount:.1f} GB"
