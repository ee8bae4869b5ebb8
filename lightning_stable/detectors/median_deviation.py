# SPDX-License-Identifier: Apache-2.0
"""A value far above the median of the recent healthy ones, measured in robust standard deviations."""

from bisect import bisect_left, insort
from collections import deque
from typing import Any

from lightning_stable.detectors.detector import Detector, Verdict, is_finite

_NORMAL_CONSISTENCY = 1.4826  # MAD * 1.4826 estimates the standard deviation of normal data


class MedianDeviation(Detector):
    """Call a value an anomaly when it lies far above the median of the recent healthy values.

    Over the last `window` accepted values, with m their median and MAD = median(|x - m|):

        rise      = max(threshold * 1.4826 * MAD, min_rise, (min_ratio - 1) * |m|)
        anomaly  <=>  value is not finite,  or  value > m + rise
        score     = (value - m) / (1.4826 * MAD)

    One-sided: a fall is never an anomaly. Anomalies never enter the window. The two floors keep a nearly constant
    stream, whose MAD is close to zero, from raising alarms over nothing.

    Median and MAD as in Hampel, "The Influence Curve and its Role in Robust Estimation" (1974); as a spike rule it is
    the robust form of the mean and standard deviation rules of OLMo and PaLM-style training.

    Args:
        window: How many accepted values are kept, at least 2. A long one is slow to forget the steep descent at the
            beginning of a run, and blind as long as it remembers it: 32 suits runs of some hundred steps.
        threshold: Robust standard deviations above the median, larger than 0. On seven public pre-training curves
            8 finds the detonation, and raises 17 alarms in 0.65 million other steps (window 128: 20, window 32: 10).
        warmup: Accepted values needed before anything finite can be an anomaly, from 2 to `window`.
        min_rise: Absolute floor of the rise, in the signal's own unit, at least 0.
        min_ratio: Relative floor: an anomaly is also larger than `min_ratio` times the median, at least 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> detector = MedianDeviation(window=16, warmup=4, min_rise=0.15)
        >>> [detector.update(loss).is_anomaly for loss in (2.0, 2.1, 1.9, 2.0, 2.05, 9.0, 2.0, float("nan"))]
        [False, False, False, False, False, True, False, True]
    """

    def __init__(
        self,
        window: int = 64,
        threshold: float = 8.0,
        warmup: int = 32,
        min_rise: float = 0.0,
        min_ratio: float = 1.0,
    ) -> None:
        if window < 2:
            raise ValueError(f"`MedianDeviation(window=...)` must be at least 2, got {window}.")
        if not threshold > 0:
            raise ValueError(f"`MedianDeviation(threshold=...)` must be larger than 0, got {threshold}.")
        if not 2 <= warmup <= window:
            raise ValueError(f"`MedianDeviation(warmup=...)` must be from 2 to window={window}, got {warmup}.")
        if not (min_rise >= 0 and is_finite(min_rise)):
            raise ValueError(f"`MedianDeviation(min_rise=...)` must be finite and at least 0, got {min_rise}.")
        if not (min_ratio >= 1 and is_finite(min_ratio)):
            raise ValueError(f"`MedianDeviation(min_ratio=...)` must be finite and at least 1, got {min_ratio}.")
        self.window = window
        self.threshold = threshold
        self.warmup = warmup
        self.min_rise = min_rise
        self.min_ratio = min_ratio
        self._values: deque[float] = deque()
        self._sorted: list[float] = []

    def judge(self, value: float) -> Verdict:
        """Say whether `value` is an anomaly, given the window as it is."""
        if not is_finite(value):
            return Verdict(is_anomaly=True, score=float("inf"), threshold=self._limit()[0])
        threshold, median, deviation = self._limit()
        score = 0.0 if value <= median else (value - median) / deviation if deviation > 0 else float("inf")
        return Verdict(is_anomaly=value > threshold, score=score, threshold=threshold)

    def accept(self, value: float) -> None:
        """Put `value` into the window; the oldest leaves."""
        self._values.append(value)
        insort(self._sorted, value)
        if len(self._values) > self.window:
            oldest = self._values.popleft()
            del self._sorted[bisect_left(self._sorted, oldest)]

    def state_dict(self) -> dict[str, Any]:
        """The accepted values, oldest first."""
        return {"values": list(self._values)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the values of `state_dict`; a shorter window keeps the latest."""
        values = state_dict["values"][-self.window :]
        self._values = deque(values)
        self._sorted = sorted(values)

    def _limit(self) -> tuple[float, float, float]:
        """The largest value that passes, the median, and the robust standard deviation."""
        if len(self._sorted) < self.warmup:
            return float("inf"), float("inf"), 0.0
        median = _median(self._sorted)
        deviation = _NORMAL_CONSISTENCY * _median(sorted([abs(value - median) for value in self._sorted]))
        rise = max(self.threshold * deviation, self.min_rise, (self.min_ratio - 1.0) * abs(median))
        return median + rise, median, deviation


def _median(ordered: list[float]) -> float:
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else 0.5 * (ordered[middle - 1] + ordered[middle])
