# SPDX-License-Identifier: Apache-2.0
"""An anomaly only if it lasts."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lightning_stable.detectors.arguments import require
from lightning_stable.detectors.detector import Detector, Verdict, is_finite
from lightning_stable.detectors.median_deviation import MedianDeviation
from lightning_stable.detectors.scan import Scan, as_values


class Consecutive(Detector):
    """Call a value an anomaly when it is at least the `times`-th in a row that another detector calls one.

    The first ones of the row pass, but the other detector does not remember them. A value that is not finite is an
    anomaly at once, and neither lengthens nor ends a row.

    Args:
        detector: The other detector; `MedianDeviation()` by default.
        times: Length of the row, at least 1.

    Raises:
        ValueError: If `times` is less than 1.

    Example:
        >>> from lightning_stable.detectors import Above
        >>> detector = Consecutive(Above(5.0), times=2)
        >>> [detector.update(value).is_anomaly for value in (9.0, 1.0, 9.0, 9.0, 9.0, 1.0)]
        [False, False, False, True, True, False]
    """

    def __init__(self, detector: Detector | None = None, times: int = 3) -> None:
        require("Consecutive", "times", times, times >= 1, "at least 1")
        self.detector = MedianDeviation() if detector is None else detector
        self.times = times
        self._row = 0

    def judge(self, value: float) -> Verdict:
        """Say whether `value` is an anomaly, given the row so far."""
        verdict = self.detector.judge(value)
        lasts = self._row + 1 >= self.times or not is_finite(value)
        return Verdict(verdict.is_anomaly and lasts, verdict.score, verdict.threshold)

    def accept(self, value: float) -> None:
        """Remember `value`, which may be an anomaly to the other detector."""
        if self.detector.judge(value).is_anomaly:
            self.reject(value)
        else:
            self._row = 0
            self.detector.accept(value)

    def reject(self, value: float) -> None:
        """Lengthen the row."""
        if is_finite(value):
            self._row += 1
            self.detector.reject(value)

    def state_dict(self) -> dict[str, Any]:
        """The length of the row, and the other detector's state."""
        return {"row": self._row, "detector": self.detector.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`."""
        self._row = state_dict["row"]
        self.detector.load_state_dict(state_dict["detector"])

    def scan(self, values: Iterable[float]) -> Scan:
        """Let the other detector scan, and count its anomalies in a row."""
        numbers = as_values(values)
        found = self.detector.scan(numbers)
        lasts = ~np.isfinite(numbers)
        for index in np.flatnonzero(~lasts):
            self._row = self._row + 1 if found.is_anomaly[index] else 0
            lasts[index] = self._row >= self.times
        return Scan(found.is_anomaly & lasts, found.score, found.threshold)
