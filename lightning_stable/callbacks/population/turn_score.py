# SPDX-License-Identifier: Apache-2.0
"""When a turn is over, and what it came to."""

import math
from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_stable._lightning import progress
from lightning_stable._lightning.results import LoggedOnStep

_LOSS = "loss"
_LONG = 1.5  # intervals: turns that take longer are pointed out


class TurnScore:
    """Scores a turn by the mean of what training logs in it, or by the first validation after `interval` steps.

    Args:
        trainer: The trainer in its `fit`.
        monitor: The key; `loss` is what `training_step` returns.
        interval: Optimizer steps.

    Example:
        >>> TurnScore.__name__  # needs a running fit; see `PopulationBasedTraining`
        'TurnScore'
    """

    def __init__(self, trainer: Trainer, monitor: str, interval: int) -> None:
        self._trainer = trainer
        self._monitor = monitor
        self._interval = interval
        self._logged = LoggedOnStep(trainer, monitor)
        self._said_that_turns_are_long = False
        self._window_is_open = False
        self.begin()

    def begin(self) -> None:
        """A turn begins."""
        self._began = self._trainer.global_step
        self._total = torch.zeros(())
        self._count = 0
        self.score: float | None = None

    @property
    def steps(self) -> int:
        """Optimizer steps of the turn so far."""
        return self._trainer.global_step - self._began

    @property
    def is_over(self) -> bool:
        """Whether there is a score, and no gradients are accumulated for a step that is to come."""
        return self.score is not None and not self._window_is_open

    @property
    def waits_for_validation(self) -> bool:
        """Whether the steps are done, and the score is not there."""
        return self._monitor != _LOSS and self.steps >= self._interval and self.score is None

    def end_batch(self, outputs: Any) -> None:
        """Note what training came to, and whether the turn is over by that."""
        self._window_is_open = progress.is_accumulating(self._trainer)
        value = self._loss(outputs) if self._monitor == _LOSS else self._logged.take()
        if value is not None:
            value = value.detach().float().mean()
            self._total = self._total.to(value.device) + value
            self._count += 1
        if self._window_is_open or self.steps < self._interval or self.score is not None:
            return
        if self._count:
            self.score = float(self._total) / self._count
        elif self._monitor == _LOSS:
            self.score = math.nan  # no step of the turn had a loss
        elif self._logged.is_known or not self._trainer.enable_validation:
            raise self._never_logged()

    def end_validation(self) -> None:
        """Take the score from a validation, if the turn has only waited for it."""
        if not self.waits_for_validation:
            return
        value = self._trainer.callback_metrics.get(self._monitor)
        if value is None:
            raise self._never_logged()
        self.score = float(value)
        if self.steps > _LONG * self._interval and not self._said_that_turns_are_long:
            self._said_that_turns_are_long = True
            rank_zero_warn(
                f"`PopulationBasedTraining(interval={self._interval})`: a turn lasts until the next validation, here"
                f" {self.steps} steps. Validate more often with `Trainer(val_check_interval=...)`, or say"
                f" `interval={self.steps}`."
            )

    def state_dict(self) -> dict[str, Any]:
        """A copy in types that load with `weights_only=True`."""
        return {"began": self._began, "total": self._total.clone(), "count": self._count, "score": self.score}

    def load_state_dict(self, state_dict: Mapping[str, Any]) -> None:
        """Take up `state_dict`."""
        self._began, self._count = int(state_dict["began"]), int(state_dict["count"])
        self._total, score = state_dict["total"].clone(), state_dict["score"]
        self.score = None if score is None else float(score)

    def _loss(self, outputs: Any) -> Tensor | None:
        """The loss of the batch, of which Lightning hands out the part that goes into an accumulated step."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        return loss * self._trainer.accumulate_grad_batches if isinstance(loss, Tensor) else None

    def _never_logged(self) -> ValueError:
        key = self._monitor
        logged = ", ".join(map(str, self._trainer.callback_metrics)) or "nothing"
        return ValueError(
            f"`PopulationBasedTraining(monitor={key!r})` has found no such value in a turn of {self.steps} steps;"
            f" logged are {logged}. Log it with `self.log({key!r}, ...)`, in training with `on_step=True`, or in a"
            ' validation; or judge by the training loss, `monitor="loss"`.'
        )
