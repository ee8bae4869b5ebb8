# SPDX-License-Identifier: Apache-2.0
"""Lightning's `SpikeDetection` as its users must use it: catch what it raises, and begin again from a checkpoint."""

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.fabric.utilities.spike import TrainingSpikeException
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint, SpikeDetection

Attempt = Callable[[Sequence[int], list[Callback]], tuple[Trainer, LightningModule, LightningDataModule]]

_CHECKPOINT = "last"
_MOST_RESTARTS = 100


@dataclass
class RestartedRun:
    """What came of it.

    Args:
        trainer: Of the last attempt.
        module: What it has trained.
        dropped: Batches of the stream that were left out in the end.
        restarts: How often it began again.
        steps_lost: Optimizer steps that no checkpoint held.
        seconds_lost: From the last checkpoint to the exception, and from there to the first batch of the next attempt.
        gave_up: Whether it was ended after too many restarts.

    Example:
        >>> RestartedRun.__name__  # of `fit_with_restarts`
        'RestartedRun'
    """

    trainer: Trainer
    module: LightningModule
    dropped: list[int]
    restarts: int = 0
    steps_lost: int = 0
    seconds_lost: float = 0.0
    gave_up: bool = False


class Keeper(Callback):
    """Notes when a checkpoint is written, and takes the state of `SpikeDetection` out of it.

    With that state in it no run can be resumed: `SpikeDetection.load_state_dict` asks for an attribute that it does not
    have (Lightning 2.6). So its running mean begins anew in every attempt.

    Example:
        >>> keeper = Keeper()
        >>> checkpoint = {"callbacks": {"SpikeDetection": {}, "other": {}}, "global_step": 50}
        >>> keeper.on_save_checkpoint(None, None, checkpoint)
        >>> checkpoint["callbacks"], keeper.step
        ({'other': {}}, 50)
    """

    def __init__(self) -> None:
        super().__init__()
        self.step = 0  # of the checkpoint
        self.began_at = self.kept_at = time.perf_counter()

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """What was lost is over now."""
        self.step = trainer.global_step
        self.began_at = self.kept_at = time.perf_counter()

    def on_save_checkpoint(self, trainer: Any, pl_module: Any, checkpoint: dict[str, Any]) -> None:
        """What has come before is not lost any more."""
        checkpoint["callbacks"].pop("SpikeDetection", None)
        self.step = checkpoint["global_step"]
        self.kept_at = time.perf_counter()


def fit_with_restarts(
    attempt: Attempt, batches: int, folder: Path, checkpoint_every: int, most: int = _MOST_RESTARTS
) -> RestartedRun:
    """Fit until nothing is raised; what `SpikeDetection` names is left out of the stream from then on.

    It is `SpikeDetection()` with its own numbers: a loss that is not finite, or three times the mean of the last ten or
    more. It looks when the step has been taken, and names the batch and the one before, by their place in the epoch, in
    a file that nobody reads: so that is done here. A batch that the checkpoint has seen is not left out again.

    Args:
        attempt: Makes trainer, model and data without these batches of the stream, with these callbacks. The stream is
            one epoch, each batch one optimizer step.
        batches: How many the stream holds.
        folder: For the checkpoint and the list of batches.
        checkpoint_every: Steps from one checkpoint to the next.
        most: Restarts after which it is given up.

    Example:
        >>> fit_with_restarts.__name__  # see `trial`
        'fit_with_restarts'
    """
    checkpoint, named = folder / f"{_CHECKPOINT}.ckpt", folder / "skip_batches.json"
    dropped: set[int] = set()
    restarts, steps_lost, seconds_lost = 0, 0, 0.0
    kept_at: float | None = None  # in the attempt before
    while True:
        keeper = Keeper()
        writer = ModelCheckpoint(
            folder, _CHECKPOINT, every_n_train_steps=checkpoint_every, enable_version_counter=False
        )
        detection = SpikeDetection(exclude_batches_path=str(named))
        trainer, module, data = attempt(sorted(dropped), [detection, keeper, writer])
        spiked = _spikes(trainer, module, data, checkpoint)
        seconds_lost += 0.0 if kept_at is None else keeper.began_at - kept_at
        run = RestartedRun(trainer, module, sorted(dropped), restarts, steps_lost, seconds_lost)
        if not spiked:
            return run
        steps_lost += trainer.global_step - keeper.step
        if restarts == most:
            run.steps_lost, run.gave_up = steps_lost, True
            return run
        stream = [batch for batch in range(batches) if batch not in dropped]
        places = [place for place in json.loads(named.read_text(encoding="utf-8")) if place >= keeper.step]
        dropped.update(stream[place] for place in places)
        restarts, kept_at = restarts + 1, keeper.kept_at


def _spikes(trainer: Trainer, module: LightningModule, data: LightningDataModule, checkpoint: Path) -> bool:
    try:
        path = str(checkpoint) if checkpoint.exists() else None
        trainer.fit(module, datamodule=data, ckpt_path=path, weights_only=True)
    except TrainingSpikeException:
        return True
    return False
