# SPDX-License-Identifier: Apache-2.0
"""One run of the study: a small GPT, a stream, a side, a seed; what it comes to, and what it has lost."""

import contextlib
import io
import logging
import time
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from types import MethodType
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer, seed_everything

from lightning_stable._lightning.command_line.quiet import quiet
from lightning_stable.guard import SpikeGuard, TrainingHalted
from lightning_stable.schedules import REX, ProfileLR
from lightning_stable.studies.survival.parts import CHECKPOINT_EVERY, Parts, parts_of
from lightning_stable.studies.survival.run_numbers import Size, warmup_steps
from lightning_stable.studies.survival.sigma_skip import SigmaSkip
from lightning_stable.studies.survival.spike_restarts import fit_with_restarts
from lightning_stable.studies.survival.streams import Stream
from lightning_stable.testbeds import CharLM, Corruption, PythonTextDataModule

_RANK_ZERO = "lightning.pytorch.utilities.rank_zero"


def run_one(side: str, stream: Stream, seed: int, size: Size | None = None) -> dict[str, float]:
    """Train once, and validate on clean data in the end.

    Weights, the order of the data and the places of the bad batches are functions of the seed, the same for all sides;
    so is the schedule: a warm-up over a tenth of the stream, then REX to its end.

    Args:
        side: A name of `sides.SIDES`.
        stream: What is trained on, one batch a step.
        seed: Decides every random number.
        size: Of model and data; by default that of the study.

    Returns:
        `loss` of validation, NaN if the weights are; `steps_lost`, optimizer steps whose work was thrown away;
        `seconds_lost`, the time that went into them and into starting again; `answers`, how often the side intervened
        by leaving out, going back or restarting; `ended_early`, 1 where it gave up; `fit_seconds` of all training.

    Example:
        >>> tiny = Size(n_layer=1, d_model=8, context=8, batch_size=2, val_batches=1)
        >>> numbers = run_one("guard_skip", Stream("nan_embedding", rate=0.25, steps=4), seed=0, size=tiny)
        >>> numbers["steps_lost"], numbers["ended_early"]
        (1.0, 0.0)
    """
    size = size or Size()
    parts = parts_of(side, stream.steps)
    run = Training(parts, stream, seed, size)
    with TemporaryDirectory() as folder, _silence():
        began = time.perf_counter()
        lost = run.with_restarts(Path(folder)) if parts.restarts else run.once(Path(folder))
        seconds = time.perf_counter() - began
        return {"loss": run.validation_loss(), **lost, "fit_seconds": seconds}


class Training:
    """A run's pieces, made as often as it begins.

    Args:
        parts: What the side brings.
        stream: What is trained on.
        seed: Decides every random number.
        size: Of model and data.

    Example:
        >>> tiny = Size(n_layer=1, d_model=8, context=8, batch_size=2, val_batches=1)
        >>> training = Training(parts_of("adamw", steps=4), Stream(steps=4), seed=0, size=tiny)
        >>> trainer, model, data = training.begin(Path("."), drop=[2], callbacks=[])
        >>> len(data.train_dataloader())
        3
    """

    def __init__(self, parts: Parts, stream: Stream, seed: int, size: Size) -> None:
        self.parts = parts
        self.stream = stream
        self.seed = seed
        self.size = size
        self.model: LightningModule | None = None

    def once(self, folder: Path) -> dict[str, float]:
        """Fit, and say what was lost."""
        callbacks = self.parts.callbacks
        trainer, self.model, data = self.begin(folder, (), callbacks)
        ended_early = 0.0
        try:
            trainer.fit(self.model, datamodule=data)
        except TrainingHalted:
            ended_early = 1.0
        return {**_lost(callbacks), "ended_early": ended_early}

    def with_restarts(self, folder: Path) -> dict[str, float]:
        """Fit as often as it takes, and say what was lost."""

        def attempt(drop: Sequence[int], watching: list[Callback]) -> Any:
            return self.begin(folder, drop, [*self.parts.callbacks, *watching])

        run = fit_with_restarts(attempt, self.stream.steps, folder, CHECKPOINT_EVERY)
        self.model = run.module
        return {
            "steps_lost": float(run.steps_lost),
            "seconds_lost": run.seconds_lost,
            "answers": float(run.restarts),
            "ended_early": float(run.gave_up),
        }

    def begin(
        self, folder: Path, drop: Sequence[int], callbacks: list[Callback]
    ) -> tuple[Trainer, LightningModule, LightningDataModule]:
        """A trainer, a model with its first weights, and the stream without the batches of `drop`."""
        seed_everything(self.seed, verbose=False)
        size = self.size
        model = CharLM(n_layer=size.n_layer, d_model=size.d_model, context=size.context, lr=size.lr)
        _schedule(model, self.parts, self.stream.steps)
        trainer = _trainer(
            max_epochs=1,
            callbacks=callbacks,
            default_root_dir=str(folder),
            enable_checkpointing=self.parts.restarts,
            gradient_clip_val=self.parts.clip_norm,
            limit_val_batches=0,
        )
        return trainer, model, self.data(drop)

    def data(self, drop: Sequence[int] = ()) -> PythonTextDataModule:
        """The stream, and clean batches to validate on."""
        bad = self.stream.bad_batches(self.seed)
        return PythonTextDataModule(
            context=self.size.context,
            batch_size=self.size.batch_size,
            batches_per_epoch=self.stream.steps,
            val_batches=self.size.val_batches,
            seed=self.seed,
            corrupt=[Corruption(kind, batches=batches, seed=self.seed) for kind, batches in bad.items()],
            drop=list(drop),
        )

    def validation_loss(self) -> float:
        """Of the model as it is now."""
        assert self.model is not None
        [logged] = _trainer().validate(self.model, datamodule=self.data(), verbose=False)
        return logged["val_loss"]


def _trainer(**options: Any) -> Trainer:
    quietly: dict[str, Any] = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
    return Trainer(accelerator="cpu", devices=1, **{"enable_checkpointing": False, **quietly, **options})


def _schedule(model: CharLM, parts: Parts, steps: int) -> None:
    """Give the model the side's optimizer, and the schedule that all sides have."""

    def configure(model: CharLM) -> Any:
        optimizer = parts.optimizer(model)
        schedule = ProfileLR(optimizer, REX(), total_steps=steps, warmup_steps=warmup_steps(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    model.configure_optimizers = MethodType(configure, model)  # type: ignore[method-assign]


def _lost(callbacks: Sequence[Callback]) -> dict[str, float]:
    """What the callbacks have thrown away."""
    lost = {"steps_lost": 0.0, "seconds_lost": 0.0, "answers": 0.0}
    for callback in callbacks:
        if isinstance(callback, SpikeGuard):
            for incident in callback.incidents:
                lost["steps_lost"] += incident.steps_skipped + incident.steps_rolled_back
                lost["seconds_lost"] += incident.seconds_lost
                lost["answers"] += 1
        if isinstance(callback, SigmaSkip):
            lost["steps_lost"] += callback.steps_skipped
            lost["seconds_lost"] += callback.seconds_lost
            lost["answers"] += callback.steps_skipped
    return lost


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Within it nothing is printed: hundreds of runs have nothing to say one by one."""
    logger = logging.getLogger(_RANK_ZERO)
    level = logger.level
    with quiet(), warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.filterwarnings("ignore", "Checkpoint directory .* exists and is not empty")  # from the second start on
        warnings.filterwarnings("ignore", "Encountered `nan` values in tensor")  # `SpikeDetection` lets batch 0 pass
        logger.setLevel(logging.ERROR)
        try:
            yield
        finally:
            logger.setLevel(level)
