# SPDX-License-Identifier: Apache-2.0
"""One member of a population that Ray Tune trains: it reports after every turn, and saves what others may copy."""

import math
import tempfile
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint

from lightning_stable.callbacks.population.hyperparameters import Hyperparameters
from lightning_stable.callbacks.population.turn_score import TurnScore

CHECKPOINT = "member.ckpt"
STEPS = "member_steps"  # what Ray counts turns by


class RayMember(Checkpoint):
    """Takes the place of `PopulationBasedTraining` in the run of one member.

    It is a kind of checkpoint callback, so that its hooks run when those of all others have.

    Args:
        hyperparameters: What it trains with.
        interval: Optimizer steps of a turn.
        monitor: What it is judged by, as in `PopulationBasedTraining`.
        mode: `min` or `max`, what is better.

    Example:
        >>> RayMember({"lr": 0.1}, interval=10, monitor="val_loss", mode="min").segments
        []
    """

    def __init__(self, hyperparameters: dict[str, float], interval: int, monitor: str, mode: str) -> None:
        super().__init__()
        self._values = hyperparameters
        self._interval = interval
        self._monitor = monitor
        self._worst = math.inf if mode == "min" else -math.inf
        self._turn: TurnScore | None = None
        self.segments: list[dict[str, Any]] = []  # the schedule of all that its weights descend from

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Set the hyper-parameters, in place of those of the member that was copied."""
        Hyperparameters("PopulationBasedTraining(search=...)", self._values, trainer, pl_module).write(self._values)
        if not self.segments or self.segments[-1]["hyperparameters"] != self._values:
            self.segments.append({"step": trainer.global_step, "hyperparameters": dict(self._values)})
        self._turn = TurnScore(trainer, self._monitor, self._interval)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss, and report if the turn is over."""
        assert self._turn is not None
        self._turn.end_batch(outputs)
        self._report(trainer)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Report if the turn has only waited for this."""
        if self._turn is not None and not trainer.sanity_checking:
            self._turn.end_validation()
            self._report(trainer)

    def state_dict(self) -> dict[str, Any]:
        """The schedule so far: who copies the weights copies it, too."""
        return {"segments": [dict(segment) for segment in self.segments]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`."""
        self.segments = [dict(segment) for segment in state_dict["segments"]]

    def _report(self, trainer: Trainer) -> None:
        """Tell Ray the score, with a checkpoint; it may end this run here, to have another go on from elsewhere."""
        from ray import tune

        assert self._turn is not None
        if not self._turn.is_over or self._turn.score is None:
            return
        score = self._turn.score
        self._turn.begin()
        with tempfile.TemporaryDirectory() as folder:
            trainer.save_checkpoint(Path(folder, CHECKPOINT))
            tune.report(
                {self._monitor: score if math.isfinite(score) else self._worst, STEPS: trainer.global_step},
                checkpoint=tune.Checkpoint.from_directory(folder),
            )
