# SPDX-License-Identifier: Apache-2.0
"""A value too many standard deviations above an exponential moving average."""

import math
from typing import Any

import numpy as np

from lightning_stable.detectors.arguments import require, require_rebaseline
from lightning_stable.detectors.detector import Detector, Verdict, is_finite
from lightning_stable.detectors.rejections import Rejections

_NORMAL_CONSISTENCY = 1.4826  # MAD * 1.4826 estimates the standard deviation of normal data


class EMAZScore(Detector):
    """Call a value an anomaly when it lies many standard deviations above a moving average of the healthy ones.

        anomaly  <=>  value is not finite,  or  value > m + max(threshold * sqrt(v), min_rise)
        score     = (value - m) / sqrt(v)
        v <- alpha v + (1 - alpha) (value - m)^2,    then  m <- alpha m + (1 - alpha) value;    of accepted values only

    where m and sqrt(v) begin as median and 1.4826 MAD of the first `warmup` accepted values. ZClip clips gradient norms
    by this rule: Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training" (2025).

    Deviations from its code: an anomaly never enters m and v (there, its clipped value does), nor does NaN; they begin
    robustly, so that a spike in the warm-up hides no later one; the state can be saved; and when more than `rebaseline`
    of the latest 1 / (1 - alpha) values (of 64 if that is more) are anomalies, they are a new level, and m and v
    theirs.

    Args:
        alpha: Decay rate, from 0 up to but not including 1. ZClip's default.
        threshold: Standard deviations above the average, larger than 0. ZClip clips from 2.5 on, which as a judge of
            losses would call some percent of the healthy ones anomalies; 14 makes one in millions.
        warmup: Accepted values needed before anything finite can be an anomaly, at least 2.
        min_rise: Absolute floor of the rise, in the signal's own unit, at least 0.
        rebaseline: Share of anomalies above which they are a new level, at most 1; `None` for never.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> detector = EMAZScore(warmup=4)
        >>> [detector.update(loss).is_anomaly for loss in (2.0, 2.1, 1.9, 2.0, 2.2, 9.0, 2.0)]
        [False, False, False, False, False, True, False]
    """

    def __init__(
        self,
        alpha: float = 0.97,
        threshold: float = 14.0,
        warmup: int = 25,
        min_rise: float = 0.0,
        rebaseline: float | None = 0.25,
    ) -> None:
        require("EMAZScore", "alpha", alpha, 0 <= alpha < 1, "at least 0 and less than 1")
        require("EMAZScore", "threshold", threshold, threshold > 0, "larger than 0")
        require("EMAZScore", "warmup", warmup, warmup >= 2, "at least 2")
        require("EMAZScore", "min_rise", min_rise, is_finite(min_rise) and min_rise >= 0, "finite and at least 0")
        require_rebaseline("EMAZScore", rebaseline)
        self.alpha = alpha
        self.threshold = threshold
        self.warmup = warmup
        self.min_rise = min_rise
        self._first: list[float] = []
        self._mean = self._variance = 0.0
        self._rejections = Rejections(round(1 / (1 - alpha)), rebaseline)

    def judge(self, value: float) -> Verdict:
        """Say whether `value` is an anomaly, given the averages as they are."""
        threshold = self._limit()
        if not is_finite(value):
            return Verdict(is_anomaly=True, score=float("inf"), threshold=threshold)
        if threshold == math.inf or value <= self._mean:
            return Verdict(is_anomaly=False, score=0.0, threshold=threshold)
        score = (value - self._mean) / math.sqrt(self._variance) if self._variance > 0 else float("inf")
        if value > threshold and self._rejections.next_is_level_change:
            return Verdict(is_anomaly=False, score=score, threshold=float("inf"))
        return Verdict(is_anomaly=value > threshold, score=score, threshold=threshold)

    def accept(self, value: float) -> None:
        """Move the averages towards `value`."""
        if len(self._first) == self.warmup and value > self._limit():
            self._begin([*self._rejections.take(), value])
        elif len(self._first) < self.warmup:
            self._begin([*self._first, value])
        else:
            away = value - self._mean
            self._variance = self.alpha * self._variance + (1 - self.alpha) * away * away  # `**` raises on overflow
            self._mean = self.alpha * self._mean + (1 - self.alpha) * value
        self._rejections.pass_over(1)

    def reject(self, value: float) -> None:
        """Count `value` among the anomalies, which may turn out to be a new level."""
        self._rejections.add(value)

    def state_dict(self) -> dict[str, Any]:
        """The averages, what they began with, and the rejected values that count."""
        return {
            "first": list(self._first),
            "mean": self._mean,
            "variance": self._variance,
            "rejected": self._rejections.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`."""
        self._first = list(state_dict["first"])
        self._mean, self._variance = state_dict["mean"], state_dict["variance"]
        self._rejections.load_state_dict(state_dict["rejected"])

    def _begin(self, values: list[float]) -> None:
        self._first = values[: self.warmup]
        if len(self._first) == self.warmup:
            with np.errstate(all="ignore"):
                self._mean = float(np.median(values))
                deviation = float(_NORMAL_CONSISTENCY * np.median(np.abs(np.array(values) - self._mean)))
            self._variance = deviation * deviation

    def _limit(self) -> float:
        if len(self._first) < self.warmup:
            return float("inf")
        limit = self._mean + max(self.threshold * math.sqrt(self._variance), self.min_rise)
        return float("inf") if math.isnan(limit) else limit
