# SPDX-License-Identifier: Apache-2.0
"""What a `SpikeGuard` refuses, when it is made and before a run begins."""

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy

from lightning_stable._lightning import data_fetcher
from lightning_stable._lightning.trainer import callbacks_of
from lightning_stable.guard.ladder import Ladder

_INSTEAD = 'Use `Trainer(strategy="auto")`, "ddp" or `ModelParallelStrategy`'


def check_snapshots(every: int, snapshots: int | None, to: str, max_bytes: int | None, ladder: Ladder) -> None:
    """Raise a `ValueError` for arguments that no snapshots can be taken by.

    Example:
        >>> from lightning_stable.guard.responses import Halt
        >>> check_snapshots(0, None, "host", None, Ladder([Halt()], forgive_after=None))
        Traceback (most recent call last):
            ...
        ValueError: `SpikeGuard(snapshot_every=...)` must be at least 1, got 0.
    """
    if every < 1:
        raise ValueError(f"`SpikeGuard(snapshot_every=...)` must be at least 1, got {every}.")
    if snapshots is not None and snapshots < 1:
        raise ValueError(f"`SpikeGuard(snapshots=...)` must be at least 1 or None, got {snapshots}.")
    if to not in ("device", "host"):
        raise ValueError(f'`SpikeGuard(snapshot_to=...)` must be "device" or "host", got {to!r}.')
    if max_bytes is not None and max_bytes < 0:
        raise ValueError(f"`SpikeGuard(max_bytes=...)` must be at least 0 or None, got {max_bytes}.")
    back = max(rung.back for rung in ladder.rungs)
    if snapshots is not None and snapshots < back:
        raise ValueError(
            f"`SpikeGuard(snapshots=...)` must be at least {back}, as far as the `ladder` goes back, got {snapshots}."
        )


def refuse_trainer(trainer: Trainer, guard: Callback) -> None:
    """Raise an error for a trainer that `guard` cannot work with.

    Example:
        >>> refuse_trainer.__name__  # needs a Trainer with a strategy
        'refuse_trainer'
    """
    strategy = type(trainer.strategy).__name__
    if trainer.strategy.handles_gradient_accumulation:
        raise RuntimeError(
            f"`SpikeGuard` cannot undo a step of `{strategy}`, which steps by itself. {_INSTEAD}, or leave the guard"
            " out."
        )
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy | ModelParallelStrategy):
        raise RuntimeError(
            f"`SpikeGuard` does not know how `{strategy}` shards parameters and gradients over {trainer.world_size}"
            f" ranks. {_INSTEAD}, or leave the guard out."
        )
    for callback in callbacks_of(trainer):
        if callback is guard:
            return
        if type(callback) is type(guard):
            raise ValueError("`Trainer(callbacks=...)` must hold one `SpikeGuard` only; put all of `watch` into one.")
        if isinstance(callback, WeightAveraging):
            name = type(callback).__name__
            raise ValueError(
                f"`SpikeGuard` must come before `{name}`, which would average in a step that is being undone."
                f" Use `callbacks=[SpikeGuard(...), {name}(...)]`."
            )


def refuse_training(trainer: Trainer, ladder: Ladder) -> None:
    """Raise a `ValueError` for data and optimizers that the ladder's responses cannot work with.

    Example:
        >>> refuse_training.__name__  # needs a running fit
        'refuse_training'
    """
    for rung in ladder.rungs if data_fetcher.hands_out_iterators(trainer) else ():
        if rung.needs_replay or rung.needs_batches:
            name, instead = (
                ('Rollback(mode="replay")', 'Use `Rollback(mode="skip")`')
                if rung.needs_replay
                else (f"{type(rung).__name__}()", "Leave it out")
            )
            raise ValueError(
                f"`{name}` needs a `training_step` that takes a batch; this one takes a `dataloader_iter` and fetches"
                f" for itself. {instead}."
            )
    if any(isinstance(optimizer, torch.optim.LBFGS) for optimizer in trainer.optimizers):
        raise ValueError("`SpikeGuard` cannot veto LBFGS, which evaluates its closure within the step.")
