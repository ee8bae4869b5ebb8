# SPDX-License-Identifier: Apache-2.0
"""How long a snapshot takes, and a plain copy of the same bytes: in turns, within a running fit."""

import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_stable.bench.gradient_supply import transformer_shapes
from lightning_stable.bench.interleaved import silence
from lightning_stable.snapshots.snapshot_ring import SnapshotRing

_WARM_UP = 2  # steps, after which there is optimizer state, and rounds, after which all memory was touched


@dataclass
class SnapshotTimes:
    """Seconds, one of each a round.

    Args:
        megabytes: Of parameters and optimizer state.
        snapshot: From its beginning until the optimizer may move.
        restore: To go back to it.
        copy: A plain copy of the same tensors into memory that is there.

    Example:
        >>> SnapshotTimes(megabytes=12.0).copy
        []
    """

    megabytes: float
    snapshot: list[float] = field(default_factory=list)
    restore: list[float] = field(default_factory=list)
    copy: list[float] = field(default_factory=list)


def snapshot_times(size: float, rounds: int) -> SnapshotTimes:
    """Take snapshots of a transformer's parameters and their AdamW state.

    Args:
        size: Of the model, in parameters.
        rounds: One of each in every round.

    Example:
        >>> len(snapshot_times(2e4, rounds=3).copy)
        3
    """
    probe = _Probe(rounds)
    batches: Any = [torch.zeros(1)] * (_WARM_UP + 1)
    with tempfile.TemporaryDirectory() as folder, silence():
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=_WARM_UP + 1,
            callbacks=[probe],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(_Weights(size), DataLoader(batches, batch_size=None))
    return probe.times


class _Weights(LightningModule):
    """As many parameters as are asked for, and hardly anything to compute."""

    def __init__(self, size: float) -> None:
        super().__init__()
        self.weights = nn.ParameterList(torch.randn(shape) for shape in transformer_shapes(size))

    def training_step(self, batch: Any, batch_idx: int) -> Tensor:
        return torch.stack([weight.sum() for weight in self.weights]).sum()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-4, fused=True)


class _Probe(Callback):
    """Measures when there is optimizer state."""

    def __init__(self, rounds: int) -> None:
        self.times = SnapshotTimes(megabytes=0.0)
        self._rounds = rounds

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if batch_idx < _WARM_UP:
            return
        states = [value for entry in trainer.optimizers[0].state.values() for value in entry.values()]
        tensors = [*(parameter.detach() for parameter in pl_module.parameters()), *states]
        copies = [torch.empty_like(tensor) for tensor in tensors]
        ring = SnapshotRing(trainer, pl_module, self, count=1, to="device", max_bytes=None)
        ring.allocate_optimizer_state()

        def snapshot() -> None:
            ring.capture({})
            ring.wait()

        self.times.megabytes = sum(tensor.nbytes for tensor in tensors) / 1e6
        for number in range(_WARM_UP + self._rounds):
            seconds = [
                _seconds(snapshot),
                _seconds(lambda: torch._foreach_copy_(copies, tensors)),
                _seconds(lambda: ring.go_back(1)),
            ]
            if number >= _WARM_UP:
                for times, each in zip(
                    (self.times.snapshot, self.times.copy, self.times.restore), seconds, strict=True
                ):
                    times.append(each)


def _seconds(work: Callable[[], Any]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
