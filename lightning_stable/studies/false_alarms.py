# SPDX-License-Identifier: Apache-2.0
"""The smallest threshold with which a detector is quiet enough on a healthy curve."""

import math
from argparse import ArgumentError
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from lightning_stable.studies.curve import Curve
from lightning_stable.studies.detector_choice import DetectorChoice
from lightning_stable.studies.replay import Progress, scan_in_parts

_OFFSETS = {"threshold": 0.0, "ratio": 1.0, "multiple": 1.0, "min_rise": 0.0}  # at which an argument allows nothing
_LOWEST, _HIGHEST = -6, 9  # powers of ten, of what an argument is above its offset
_DIGITS = 90  # two of them: 1.0, 1.1, ..., 9.9 times a power of ten


@dataclass(frozen=True)
class Budget:
    """How many alarms are few enough, where nothing is wrong.

    Args:
        allowed: Alarms.
        values: Among which they are counted.
        rate: Alarms per million values that are wanted.

    Example:
        >>> Budget(allowed=0, values=5000, rate=1.0).is_too_short
        True
    """

    allowed: int
    values: int
    rate: float

    @property
    def is_too_short(self) -> bool:
        """Whether not even one alarm is allowed, so that the wanted rate and a lower one look alike."""
        return self.allowed == 0


@dataclass(frozen=True)
class Suggestion:
    """A detector that is quiet enough.

    Args:
        choice: The detector with the new argument.
        argument: Which argument.
        before: Its value so far.
        value: The most sensitive that will do: the smallest of those with two digits, or the limit next to the values.
        alarms_before: Alarms with the value so far, where nothing is wrong; those at NaN and infinity do not count.
        alarms: Alarms with the new value, found by scanning with it.
        is_floor: Whether the detector's other arguments keep it quiet whatever this one is.

    Example:
        >>> from lightning_stable.studies.detector_choice import choose_detector
        >>> Suggestion(choose_detector("ZScore"), "threshold", 6.0, 7.1, 3, 0, False).value
        7.1
    """

    choice: DetectorChoice
    argument: str
    before: float
    value: float
    alarms_before: int
    alarms: int
    is_floor: bool


def budget_of(rate: float, healthy: NDArray[np.bool_]) -> Budget:
    """The alarms that a rate allows.

    Args:
        rate: Alarms per million values.
        healthy: Which values count.

    Example:
        >>> budget_of(100.0, np.ones(25_000, dtype=bool)).allowed
        2
    """
    values = int(healthy.sum())
    return Budget(math.floor(rate * values / 1e6 + 1e-9), values, rate)


def suggest(
    choice: DetectorChoice,
    curve: Curve,
    healthy: NDArray[np.bool_],
    allowed: int,
    progress: Progress | None = None,
) -> Suggestion | None:
    """The smallest threshold with at most so many alarms, or `None` if the detector has no argument of that kind.

    What is an alarm with one threshold enters the window with a larger one, so that the number of alarms may rise again
    in places. The threshold returned was scanned with, and has few enough; the one before it, of those with two digits,
    has too many.

    Args:
        choice: The detector; of `LevelShift` it is `min_rise`, of `Above` and `Below` the limit that is found.
        curve: The curve.
        healthy: Which of its values count; the others are judged all the same.
        allowed: Alarms among these.
        progress: Told now and then how far it is.

    Example:
        >>> from lightning_stable.studies.detector_choice import choose_detector
        >>> curve = Curve("loss", np.arange(100.0), np.where(np.arange(100) == 50, 3.1, 1.0))
        >>> suggest(choose_detector("Ratio"), curve, np.ones(100, dtype=bool), 0).value
        3.1
    """
    argument = _argument_of(choice)
    if argument is None:
        return None
    counter = _Counter(choice, argument, curve, healthy, progress)
    before = float(choice.arguments[argument])
    alarms_before = counter.count(before)
    if argument == "limit":
        value, is_floor = _outermost(choice, curve, healthy, allowed), False
    else:
        value, is_floor = _smallest(argument, before, lambda value: counter.is_quiet(value, allowed))
    if value is None:
        return None
    changed = choice.changed(argument, value)
    return Suggestion(changed, argument, before, value, alarms_before, counter.count(value), is_floor)


class _Counter:
    """Counts alarms at finite healthy values."""

    def __init__(
        self,
        choice: DetectorChoice,
        argument: str,
        curve: Curve,
        healthy: NDArray[np.bool_],
        progress: Progress | None,
    ) -> None:
        self._choice = choice
        self._argument = argument
        last = int(np.flatnonzero(healthy)[-1]) + 1 if healthy.any() else 0
        self._values = curve.values[:last]  # what comes later is of no consequence
        self._counts = (healthy & np.isfinite(curve.values))[:last]
        self._progress = progress
        self._known: dict[float, int] = {}

    def count(self, value: float) -> int:
        """The number of alarms."""
        self.is_quiet(value, len(self._values))
        return self._known[value]

    def is_quiet(self, value: float, allowed: int) -> bool:
        """Whether there are at most so many; one too many ends the scan."""
        if value in self._known:
            return self._known[value] <= allowed
        try:
            detector = self._choice.changed(self._argument, value).build()
        except (ArgumentError, TypeError, ValueError):  # somebody's own detector may have bounds of its own
            return False
        alarms, start = 0, 0
        for done, scan in scan_in_parts(detector, self._values):
            alarms += int((scan.is_anomaly & self._counts[start:done]).sum())
            start = done
            if alarms > allowed:
                return False
            if self._progress:
                text = f"{self._choice.label}: counting alarms with {self._argument}={value:g}"
                self._progress(text, done / len(self._values))
        self._known[value] = alarms
        return True


def _argument_of(choice: DetectorChoice) -> str | None:
    name = choice.config["class_path"].rpartition(".")[2]
    if name == "LevelShift":
        return "min_rise"  # in the unit of the curve, and mostly what decides
    numbers = {key for key, value in choice.arguments.items() if isinstance(value, int | float)}
    return next((key for key in ("threshold", "ratio", "multiple", "limit") if key in numbers), None)


def _smallest(argument: str, start: float, is_quiet: Callable[[float], bool]) -> tuple[float | None, bool]:
    """The smallest value of two digits that is quiet, next to one that is not; and whether all are quiet."""
    offset = _OFFSETS[argument]
    lowest, highest = _LOWEST * _DIGITS, _HIGHEST * _DIGITS
    if is_quiet(_value_of(lowest, offset)):
        return _value_of(lowest, offset), True
    loud, quiet = _turn(min(max(_number_of(start - offset), lowest + 1), highest), lowest, highest,
                        lambda number: is_quiet(_value_of(number, offset)))  # fmt: skip
    if quiet is None:
        return None, False
    while quiet - loud > 1:
        middle = (quiet + loud) // 2
        if is_quiet(_value_of(middle, offset)):
            quiet = middle
        else:
            loud = middle
    return _value_of(quiet, offset), False


def _turn(number: int, loud: int, highest: int, is_quiet: Callable[[int], bool]) -> tuple[int, int | None]:
    """A loud number and a quiet one above it, looked for from `number` on in growing steps."""
    step = 4
    if is_quiet(number):
        quiet = number
        while quiet - step > loud and is_quiet(quiet - step):
            quiet, step = quiet - step, 2 * step
        return max(loud, quiet - step), quiet
    while number < highest:
        loud, number, step = number, min(number + step, highest), 2 * step
        if is_quiet(number):
            return loud, number
    return number, None


def _number_of(value: float) -> int:
    """Which of the numbers with two digits is the first that is not below a value: 0 for 1.0, 1 for 1.1, 90 for 10."""
    if value <= 0:
        return _LOWEST * _DIGITS
    if value >= 10.0**_HIGHEST:
        return _HIGHEST * _DIGITS
    power = math.floor(math.log10(value))
    return power * _DIGITS + math.ceil(round(10 * value / 10.0**power, 9)) - 10


def _value_of(number: int, offset: float) -> float:
    power, digits = divmod(number, _DIGITS)
    return float(f"{offset + float(f'{digits + 10}e{power - 1}'):.12g}")


def _outermost(choice: DetectorChoice, curve: Curve, healthy: NDArray[np.bool_], allowed: int) -> float | None:
    """The limit that so many healthy values are beyond, rounded away from the others to four digits."""
    values = np.sort(curve.values[healthy & np.isfinite(curve.values)])
    if not len(values):
        return None
    at = min(allowed, len(values) - 1)
    if choice.config["class_path"].rpartition(".")[2] == "Below":
        return _rounded(float(values[at]), math.floor)
    return _rounded(float(values[-1 - at]), math.ceil)


def _rounded(value: float, direction: Callable[[float], int]) -> float:
    if not 1e-290 < abs(value) < 1e290:  # zero, or where powers of ten end
        return value
    unit = math.floor(math.log10(abs(value))) - 3
    return float(f"{direction(round(value / 10.0**unit, 6))}e{unit}")
