# SPDX-License-Identifier: Apache-2.0
"""What the guard writes down of every intervention."""

import math
from dataclasses import asdict, dataclass, field
from typing import Any

WARNING = "Warning"  # the response of what only people are told of


@dataclass
class Incident:
    """One spike and what was done about it; or a warning, about which nothing was done.

    Args:
        step: The loggers' x axis; it never goes back.
        global_step: Optimizer steps of the model before the spike.
        epoch: The epoch, from 0.
        batches: The batch indices within the epoch that made up the step.
        signal: What gave it away, for example `loss`.
        value: The signal's value, possibly not finite.
        threshold: The largest value that would have passed; infinite where only finiteness was asked.
        response: The class name of the response; `Warning` if there was none.
        restored: What was put back, in words.
        steps_skipped: Optimizer steps that were vetoed and forgotten.
        steps_rolled_back: Good optimizer steps that were undone.
        batches_passed_over: Batches that follow and are fetched but not trained on; of a stream whose end nobody knows,
            at most so many.
        norm_before: The l2 norm of the gradients before `ClipStep` shrank them; `None` if it did not.
        norm_after: Their norm after it.
        notes: Gradient entries that were not finite; what side responses have done, and what they could not do; of a
            warning, which detector has raised it.
        seconds_lost: Wall-clock time that went into work that was thrown away.
        time: When, ISO 8601.
        rank: With several ranks, the one with the largest loss, or the first whose loss was not finite.
        cause: What `Diagnose` has found: the data, the state, or that it does not happen again; empty if nothing.
        batch_hash: SHA-256 of each batch's contents as the loader gave it, if `Diagnose` was there.

    Example:
        >>> incident = Incident(step=7, global_step=7, epoch=0, batches=[7], signal="loss", value=float("nan"),
        ...                     threshold=2.5, response="SkipStep", steps_skipped=1)
        >>> incident.to_json()["value"], str(incident)
        ('nan', 'step 7: loss is nan, SkipStep (batch 7 of epoch 0)')
    """

    step: int
    global_step: int
    epoch: int
    batches: list[int]
    signal: str
    value: float
    threshold: float
    response: str
    restored: list[str] = field(default_factory=list)
    steps_skipped: int = 0
    steps_rolled_back: int = 0
    batches_passed_over: int = 0
    norm_before: float | None = None
    norm_after: float | None = None
    notes: list[str] = field(default_factory=list)
    seconds_lost: float = 0.0
    time: str = ""
    rank: int | None = None
    cause: str = ""
    batch_hash: list[str] = field(default_factory=list)

    @property
    def is_warning(self) -> bool:
        """Whether people were told and nothing else was done."""
        return self.response == WARNING

    def to_json(self) -> dict[str, Any]:
        """The fields in what JSON can say: a non-finite number becomes `"nan"`, `"inf"` or `"-inf"`."""
        return {key: _json(value) for key, value in asdict(self).items()}

    @classmethod
    def from_json(cls, fields: dict[str, Any]) -> "Incident":
        """The incident that `to_json` wrote."""
        return cls(**{**fields, "value": float(fields["value"]), "threshold": float(fields["threshold"])})

    def __str__(self) -> str:
        batches = f"batch {self.batches[0]}" if len(self.batches) == 1 else f"batches {self.batches}"
        batches = batches if self.batches else "before a batch"
        reading = self._reading()
        where = f"{batches} of epoch {self.epoch}"
        over = f", {self.batches_passed_over} passed over" if self.batches_passed_over else ""
        rank = "" if self.rank is None else f", rank {self.rank}"
        cause = f"; cause: {self.cause}" if self.cause else ""
        text = f"step {self.step}: {self.signal} {reading}, {self.response} ({where}{rank}{over}){cause}"
        return text if text.isprintable() else repr(text)[1:-1]  # names of signals may come from anywhere

    def _reading(self) -> str:
        # where `LevelShift` warns, the limit is of the level, and not of the value that ends a block
        known_limit = math.isfinite(self.value) and math.isfinite(self.threshold) and self.response != WARNING
        if not known_limit:
            return f"is {self.value:.4g}"
        above = "above" if self.value > self.threshold else "below"
        word = "instead of" if self.response == "RestartOptimizer" else above
        return f"{self.value:.4g} {word} {self.threshold:.4g}"


def _json(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    return value
