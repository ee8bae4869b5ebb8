# SPDX-License-Identifier: Apache-2.0
"""What is known of the optimizer step that is under way."""

import datetime
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from lightning_stable.guard.incident import WARNING, Incident
from lightning_stable.guard.responses import Response
from lightning_stable.guard.signals import GRAD_NORM, LOSS, Anomaly
from lightning_stable.guard.step_reading import StepReading, describe


@dataclass
class Window:
    """One optimizer step: its batches and losses, what it was judged by, and what is done about it.

    Args:
        losses: What `backward` was called on since the last optimizer step.
        batches: Indices within the epoch.
        readings: The signals, by name.
        anomaly: What gave a spike away.
        response: What answers it.
        restored: What the response has put back, in words.
        rank: The one that saw it.
        cause: What brought it about, as far as a side response has found out.
        batch_hash: What tells the batches from others.
        stepped: Whether an optimizer was about to move.
        non_finite_losses: Micro-batches whose loss was NaN or infinite, over all ranks.
        non_finite_gradients: Entries of the gradients that were.
        notes: What else is known of the step, in words, side responses' findings included.

    Example:
        >>> Window(batches=[3]).is_vetoed
        False
    """

    losses: list[Tensor] = field(default_factory=list)
    batches: list[int] = field(default_factory=list)
    readings: dict[str, float] = field(default_factory=dict)
    anomaly: Anomaly | None = None
    response: Response | None = None
    restored: list[str] = field(default_factory=list)
    rank: int | None = None
    cause: str = ""
    batch_hash: list[str] = field(default_factory=list)
    stepped: bool = False
    non_finite_losses: int = 0
    non_finite_gradients: int = 0
    notes: list[str] = field(default_factory=list)

    @property
    def is_spike(self) -> bool:
        """Whether something is done about it."""
        return self.anomaly is not None

    @property
    def is_vetoed(self) -> bool:
        """Whether the optimizers are kept from moving."""
        return self.response is not None and self.response.vetoes

    @property
    def has_gradient(self) -> bool:
        """Whether any optimizer had one: not where a scaler has found overflows, or `training_step` gave no loss."""
        return LOSS in self.readings or any(norm for key, norm in self.readings.items() if key.startswith(GRAD_NORM))

    def count(self, step: StepReading) -> None:
        """Add what was not finite in one optimizer's step."""
        self.non_finite_losses += step.non_finite_losses
        self.non_finite_gradients += sum(step.non_finite_gradients.values())
        if step.non_finite_gradients:
            self.notes.append(describe(step.non_finite_gradients))

    def incident(self, step: int, global_step: int, epoch: int, **numbers: Any) -> Incident:
        """What is written down of it."""
        assert self.anomaly is not None
        assert self.response is not None
        return self._written_down(
            self.anomaly,
            step,
            global_step,
            epoch,
            response=type(self.response).__name__,
            restored=self.restored,
            steps_skipped=int(self.response.vetoes),
            rank=self.rank,
            cause=self.cause,
            batch_hash=self.batch_hash,
            notes=list(self.notes),
            **numbers,
        )

    def warning(self, alarm: Anomaly, step: int, global_step: int, epoch: int) -> Incident:
        """What is written down of an alarm at a step that was healthy."""
        notes = [f"raised by {alarm.detector}"]
        return self._written_down(alarm, step, global_step, epoch, response=WARNING, notes=notes)

    def _written_down(self, anomaly: Anomaly, step: int, global_step: int, epoch: int, **more: Any) -> Incident:
        return Incident(
            step=step,
            global_step=global_step,
            epoch=epoch,
            batches=list(self.batches),
            signal=anomaly.signal,
            value=anomaly.value,
            threshold=anomaly.verdict.threshold,
            **more,
            time=datetime.datetime.now(datetime.timezone.utc).isoformat(timespec="seconds"),
        )
