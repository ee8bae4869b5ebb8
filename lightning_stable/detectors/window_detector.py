# SPDX-License-Identifier: Apache-2.0
"""What detectors have in common that compare a value with a window of healthy ones."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_stable.detectors.arguments import require, require_rebaseline
from lightning_stable.detectors.detector import Detector, Verdict, is_finite
from lightning_stable.detectors.rejections import Rejections
from lightning_stable.detectors.scan import Scan, as_values, scan_in_leaps

Array = NDArray[np.float64]


class WindowDetector(Detector, ABC):
    """Calls a value an anomaly that is too far above the centre of a window of accepted ones.

    The window are the latest `window` accepted values that have at least `delay` accepted ones after them (fewer as
    long as there would be less than `warmup` values to compare with):

        anomaly  <=>  value is not finite,  or  value > center + max(rise, min_rise)

    A subclass says what centre and rise are. If anomalies are more than `rebaseline` of the latest `window` values (or
    of 64, if that is more), the level has changed: they are healthy from then on, and become the window.

    Args:
        window: Accepted values that are compared with.
        warmup: Accepted values needed before anything finite can be an anomaly.
        delay: Latest accepted values that are not compared with yet.
        min_rise: Absolute floor of the rise, in the signal's own unit.
        rebaseline: Share of anomalies above which they are none; `None` for never.
        shortest_warmup: Values without which centre and rise cannot be told.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from lightning_stable.detectors import ZScore
        >>> isinstance(ZScore(), WindowDetector)
        True
    """

    def __init__(
        self,
        window: int,
        warmup: int,
        delay: int,
        min_rise: float,
        rebaseline: float | None,
        shortest_warmup: int = 2,
    ) -> None:
        name = type(self).__name__
        require(name, "window", window, window >= shortest_warmup, f"at least {shortest_warmup}")
        fits = shortest_warmup <= warmup <= window
        require(name, "warmup", warmup, fits, f"from {shortest_warmup} to window={window}")
        require(name, "delay", delay, delay >= 0, "at least 0")
        require(name, "min_rise", min_rise, is_finite(min_rise) and min_rise >= 0, "finite and at least 0")
        require_rebaseline(name, rebaseline)
        self.window = window
        self.warmup = warmup
        self.delay = delay
        self.min_rise = min_rise
        self.rebaseline = rebaseline
        self._accepted: list[float] = []
        self._rejections = Rejections(window, rebaseline)
        self._limit: tuple[float, float, float] | None = None  # threshold, centre and unit, while nothing has changed

    @abstractmethod
    def _measure(self, windows: Array) -> tuple[Array, Array, Array]:
        """Centre, rise and unit of the score for each row of `windows`."""

    def judge(self, value: float) -> Verdict:
        """Say whether `value` is an anomaly, given the window as it is."""
        threshold, center, unit = self._known_limit()
        if not is_finite(value):
            return Verdict(is_anomaly=True, score=float("inf"), threshold=threshold)
        score = 0.0 if value <= center else _known((value - center) / unit) if unit > 0 else float("inf")
        if value > threshold and self._rejections.next_is_level_change:
            return Verdict(is_anomaly=False, score=score, threshold=float("inf"))
        return Verdict(is_anomaly=value > threshold, score=score, threshold=threshold)

    def accept(self, value: float) -> None:
        """Put `value` into the window; the oldest leaves."""
        if value > self._known_limit()[0] and self._rejections.next_is_level_change:
            self._accepted = self._rejections.take()
        self._rejections.pass_over(1)
        self._remember([value])

    def reject(self, value: float) -> None:
        """Count `value` among the anomalies, which may turn out to be a new level."""
        self._rejections.add(value)

    def scan(self, values: Iterable[float]) -> Scan:
        """Do what `update` does for each of `values`, a few thousand at once."""
        return scan_in_leaps(as_values(values), self._leap, self.update)

    def state_dict(self) -> dict[str, Any]:
        """The accepted values, oldest first, and the rejected ones that count."""
        return {"values": list(self._accepted), "rejected": self._rejections.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the values of `state_dict`; a shorter window keeps the latest."""
        self._accepted = []
        self._remember(state_dict["values"])
        self._rejections = Rejections(self.window, self.rebaseline)
        if "rejected" in state_dict:
            self._rejections.load_state_dict(state_dict["rejected"])

    def _remember(self, values: list[float]) -> None:
        self._accepted = [*self._accepted, *values][-(self.window + self.delay) :]
        self._limit = None

    def _known_limit(self) -> tuple[float, float, float]:
        if self._limit is None:
            oldest = max(len(self._accepted) - self.delay, self.warmup)
            compared = self._accepted[:oldest][-self.window :]
            if len(compared) < self.warmup:
                self._limit = float("inf"), float("inf"), 0.0
            else:
                threshold, center, unit = (float(each[0]) for each in self._limits(np.array([compared])))
                self._limit = threshold, center, unit
        return self._limit

    def _limits(self, windows: Array) -> tuple[Array, Array, Array]:
        """Threshold, centre and unit; values too large to be added up allow everything."""
        with np.errstate(all="ignore"):
            center, rise, unit = self._measure(windows)
            threshold = center + np.maximum(rise, self.min_rise)
        return np.where(np.isnan(threshold), np.inf, threshold), center, unit

    def _leap(self, chunk: Array, found: Scan, start: int) -> int:
        finite = np.isfinite(chunk)
        length = len(chunk) if finite.all() else int(finite.argmin())
        if length == 0 or len(self._accepted) < self.window + self.delay:
            return 0
        chunk = chunk[:length]
        windows = np.lib.stride_tricks.sliding_window_view(np.concatenate([self._accepted, chunk]), self.window)[
            :length
        ]
        threshold, center, unit = self._limits(windows)
        above = chunk > threshold
        healthy = int(above.argmax()) if above.any() else length
        chunk, center, unit = chunk[:healthy], center[:healthy], unit[:healthy]
        with np.errstate(all="ignore"):
            score = np.where(unit > 0, (chunk - center) / unit, np.inf)
        found.score[start : start + healthy] = np.where(chunk <= center, 0.0, np.where(np.isnan(score), np.inf, score))
        found.threshold[start : start + healthy] = threshold[:healthy]
        self._rejections.pass_over(healthy)
        self._remember(chunk.tolist())
        return healthy


def _known(score: float) -> float:
    """Infinity where a difference and its unit both are."""
    return float("inf") if math.isnan(score) else score
