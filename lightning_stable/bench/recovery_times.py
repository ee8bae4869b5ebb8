# SPDX-License-Identifier: Apache-2.0
"""How long a rollback holds up a run, and how long a restart from a checkpoint: the same run, the demo's model."""

import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.optim import Optimizer

from lightning_stable.bench.interleaved import silence
from lightning_stable.guard import Halt, Rollback, SpikeGuard
from lightning_stable.testbeds import CharLM, PythonTextDataModule

_EVERY = 4  # steps from one bad gradient to the next


def rollback_times(rounds: int) -> list[float]:
    """Let a gradient become NaN now and then; return the seconds from each veto to the beginning of the next step.

    Args:
        rounds: How many rollbacks.

    Example:
        >>> rollback_times.__name__  # trains the demo's model for some steps
        'rollback_times'
    """
    clock = _BadGradients(rounds)
    guard = SpikeGuard(ladder=[Rollback(times=rounds + 1), Halt()], forgive_after=1, snapshot_every=2)
    with tempfile.TemporaryDirectory() as folder:
        _fit([clock, guard, clock.stopwatch], Path(folder), max_steps=-1)
    return clock.stopwatch.seconds


def restart_times(rounds: int) -> list[float]:
    """Start the run anew from a checkpoint; return the seconds from the start of the process to its first step.

    Args:
        rounds: How many times.

    Example:
        >>> restart_times.__name__  # starts processes
        'restart_times'
    """
    with tempfile.TemporaryDirectory() as folder:
        checkpoint = Path(folder) / "last.ckpt"
        with silence():
            _fit([SpikeGuard()], Path(folder), max_steps=3).save_checkpoint(checkpoint)
        call = f"resume({str(checkpoint)!r}, {torch.get_num_threads()})"
        command = [sys.executable, "-c", f"from {__name__} import resume; {call}"]
        found = []
        for _ in range(rounds):
            began = time.perf_counter()
            subprocess.run(command, check=True, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)
            found.append(time.perf_counter() - began)
    return found


def resume(checkpoint: str, threads: int) -> None:
    """Go on from a checkpoint, up to the beginning of the next step, in a process of its own.

    Args:
        checkpoint: That `restart_times` has written.
        threads: Of torch.

    Example:
        >>> resume.__name__  # called by `restart_times`
        'resume'
    """
    torch.set_num_threads(threads)
    _fit([SpikeGuard(), _StopAtOnce()], Path(checkpoint).parent, max_steps=-1, checkpoint=checkpoint)


def _fit(callbacks: list[Callback], folder: Path, max_steps: int, checkpoint: str | None = None) -> Trainer:
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        callbacks=callbacks,
        default_root_dir=folder,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        limit_val_batches=0,
    )
    model = CharLM(n_layer=3, d_model=96, context=64)  # of the recipe
    safely = {} if checkpoint is None else {"ckpt_path": checkpoint, "weights_only": True}
    with silence():
        trainer.fit(model, PythonTextDataModule(context=64), **safely)
    return trainer


class _BadGradients(Callback):
    """Makes every few steps' gradient NaN, and ends the run after the last of them."""

    def __init__(self, rounds: int) -> None:
        self.stopwatch = _Stopwatch()
        self._rounds = rounds

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if trainer.fit_loop.epoch_loop.batch_idx % _EVERY != _EVERY - 1:
            return
        if len(self.stopwatch.seconds) == self._rounds:
            trainer.should_stop = True
            return
        parameter = next(parameter for parameter in pl_module.parameters() if parameter.grad is not None)
        parameter.grad = torch.full_like(parameter, torch.nan)
        self.stopwatch.is_awaited = True


class _Stopwatch(Callback):
    """Stands behind the guard: from its verdict to the next step."""

    def __init__(self) -> None:
        self.seconds: list[float] = []
        self.is_awaited = False
        self._began: float | None = None

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        if self.is_awaited:
            self._began, self.is_awaited = time.perf_counter(), False

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        if self._began is not None:
            self.seconds.append(time.perf_counter() - self._began)
            self._began = None


class _StopAtOnce(Callback):
    """Ends the process at its first step, as `fit` would write and print for a while."""

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        sys.exit(0)
