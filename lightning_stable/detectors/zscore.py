# SPDX-License-Identifier: Apache-2.0
"""A value too many standard deviations above the mean of the recent healthy ones."""

import numpy as np

from lightning_stable.detectors.arguments import require
from lightning_stable.detectors.window_detector import Array, WindowDetector


class ZScore(WindowDetector):
    """Call a value an anomaly when it lies many standard deviations above the mean of the values before it.

    Over the last `window` accepted values, the judged one not among them:

        anomaly  <=>  value is not finite,  or  value > mean + max(threshold * std, min_rise)
        score     = (value - mean) / std,    std with window - 1

    The rule of OLMo's `SkipStepOptimizer`, with its defaults.

    Deviations from it: NaN and spikes never enter the window (there, one NaN has the next 128 healthy steps skipped,
    and one spike hides smaller ones for as long); the window is in the `state_dict`; `min_rise`; and when more than
    `rebaseline` of the latest values are anomalies, they are a new level and become the window.

    Args:
        window: How many accepted values are compared with, at least 2.
        threshold: Standard deviations above the mean, larger than 0.
        warmup: Accepted values needed before anything finite can be an anomaly, from 2 to `window`.
        min_rise: Absolute floor of the rise, in the signal's own unit, at least 0: without one, a constant stream
            allows no rise at all.
        rebaseline: Share of anomalies above which they are a new level, at most 1; `None` for never.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> detector = ZScore(window=16, warmup=4)
        >>> [detector.update(loss).is_anomaly for loss in (2.0, 2.1, 1.9, 2.0, 2.2, 9.0, 2.0)]
        [False, False, False, False, False, True, False]
    """

    def __init__(
        self,
        window: int = 128,
        threshold: float = 6.0,
        warmup: int = 64,
        min_rise: float = 0.0,
        rebaseline: float | None = 0.25,
    ) -> None:
        super().__init__(window, warmup, 0, min_rise, rebaseline)
        require("ZScore", "threshold", threshold, threshold > 0, "larger than 0")
        self.threshold = threshold

    def _measure(self, windows: Array) -> tuple[Array, Array, Array]:
        rows = np.ascontiguousarray(windows)  # summed in the same order, however many rows there are
        std = rows.std(axis=1, ddof=1)
        return rows.mean(axis=1), self.threshold * std, std
