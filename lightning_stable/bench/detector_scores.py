# SPDX-License-Identifier: Apache-2.0
"""How well alarms fit what happened in a curve."""

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from lightning_stable.bench.labelled_curves import DETONATION, LEVEL_SHIFT, OUTLIER, SLOW_DIVERGENCE, Curve

IN_TIME = 1
"""Steps after a detonation within which an alarm has found it."""

_AROUND = 50  # values on each side that say what an ordinary one is there
_ORDINARY = 4.0  # robust standard deviations
_NORMAL_CONSISTENCY = 1.4826  # MAD * 1.4826 estimates the standard deviation of normal data


@dataclass
class Score:
    """What the alarms of one detector were worth, over any number of curves.

    Args:
        healthy_steps: Values at which nothing happened.
        false_alarms: Alarms at these.
        detonations: How many there were.
        found_detonations: How many had an alarm in the first `IN_TIME` + 1 values.
        slow_divergences: How many there were.
        slow_delays: For each that was found, steps from its beginning to the first alarm at a value that is no outlier.
        outliers: How many there were.
        called_outliers: How many had an alarm.
        level_shifts: How many there were.
        shift_alarms: Alarms in the time a change of level is given to settle.

    Example:
        >>> Score(healthy_steps=2_000_000, false_alarms=1).false_alarms_per_million
        0.5
    """

    healthy_steps: int = 0
    false_alarms: int = 0
    detonations: int = 0
    found_detonations: int = 0
    slow_divergences: int = 0
    slow_delays: list[int] = field(default_factory=list)
    outliers: int = 0
    called_outliers: int = 0
    level_shifts: int = 0
    shift_alarms: int = 0

    @property
    def false_alarms_per_million(self) -> float:
        """Alarms per million healthy steps."""
        return 1e6 * self.false_alarms / max(1, self.healthy_steps)

    @property
    def slow_recall(self) -> float:
        """Share of the slow divergences that were found; 1 if there were none."""
        return len(self.slow_delays) / self.slow_divergences if self.slow_divergences else 1.0

    @property
    def median_slow_delay(self) -> float:
        """Steps from the beginning of a slow divergence to its alarm; NaN if none was found."""
        return float(np.median(self.slow_delays)) if self.slow_delays else float("nan")

    def __add__(self, other: "Score") -> "Score":
        return Score(**{name: getattr(self, name) + getattr(other, name) for name in self.__dataclass_fields__})


def score(curve: Curve, alarms: NDArray[np.bool_]) -> Score:
    """Compare alarms with what happened.

    Args:
        curve: With its events.
        alarms: One boolean per value.

    Example:
        >>> from lightning_stable.bench.labelled_curves import Event
        >>> curve = Curve("a", np.zeros(1000), [Event(OUTLIER, 500, 501)])
        >>> score(curve, np.isin(np.arange(1000), [20, 500])).false_alarms
        1
    """
    healthy = curve.healthy
    found = Score(healthy_steps=int(healthy.sum()), false_alarms=int((alarms & healthy).sum()))
    for event in curve.events:
        inside = alarms[event.start : event.end]
        if event.kind == DETONATION:
            found.detonations += 1
            found.found_detonations += bool(inside[: IN_TIME + 1].any())
        elif event.kind == SLOW_DIVERGENCE:
            found.slow_divergences += 1
            found.slow_delays += _first_at_an_ordinary_value(
                curve.values, event.start + np.flatnonzero(inside), event.start
            )
        elif event.kind == OUTLIER:
            found.outliers += 1
            found.called_outliers += bool(inside[:1].any())
        elif event.kind == LEVEL_SHIFT:
            found.level_shifts += 1
            found.shift_alarms += int(inside.sum())
    return found


def total(scores: Sequence[Score]) -> Score:
    """Add up.

    Args:
        scores: Of several curves.

    Example:
        >>> total([Score(false_alarms=1), Score(false_alarms=2)]).false_alarms
        3
    """
    return sum(scores, Score())


def _first_at_an_ordinary_value(values: NDArray[np.float64], alarms: NDArray[np.intp], start: int) -> list[int]:
    """The delay of the first alarm that is not one at an outlier, which says nothing of where the level goes."""
    for alarm in alarms.tolist():
        around = values[max(0, alarm - _AROUND) : alarm + _AROUND + 1]
        median = np.median(around)
        deviation = _NORMAL_CONSISTENCY * np.median(np.abs(around - median))
        if abs(values[alarm] - median) <= _ORDINARY * deviation:
            return [alarm - start]
    return []
