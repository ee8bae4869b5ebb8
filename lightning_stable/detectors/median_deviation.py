# SPDX-License-Identifier: Apache-2.0
"""A value far above the median of the recent healthy ones, measured in robust standard deviations."""

import math

import numpy as np

from lightning_stable.detectors.arguments import require
from lightning_stable.detectors.detector import is_finite
from lightning_stable.detectors.window_detector import Array, WindowDetector

_NORMAL_CONSISTENCY = 1.4826  # the median of |x| times this estimates the standard deviation of normal data


class MedianDeviation(WindowDetector):
    """Call a value an anomaly when it lies far above the median of the recent healthy values.

    Over the last `window` accepted values x that have `delay` after them, with m their median:

        s         = 1.4826 * min(median |x - m|, median |x - the x before it| / sqrt(2))
        rise      = max(threshold * s, min_rise, (min_ratio - 1) * |m|)
        anomaly  <=>  value is not finite,  or  value > m + rise
        score     = (value - m) / s

    One-sided: a fall is never an anomaly. Anomalies never enter the window; but when they are more than `rebaseline` of
    the latest `window` values (of 64 if that is more), they are the new level, no anomalies, and become the window. The
    two floors keep a nearly constant stream, whose s is close to zero, from raising alarms over nothing.

    Median and MAD as in Hampel, "The Influence Curve and its Role in Robust Estimation" (1974); as a spike rule it is
    the robust form of the mean and standard deviation rules of OLMo and PaLM-style training. The delay is that of
    llm-foundry's outlier detector.

    Deviations: the differences of neighbours (von Neumann, 1941) tell the noise while the values fall, as they do at
    the beginning of a run, where the MAD alone takes the descent for noise and is blind to spikes. For white noise both
    are the standard deviation. Where neighbours are alike, as in a moving average, s is smaller: set a floor there.

    Args:
        window: How many accepted values are compared with, at least 2. A long one is slow to follow the steep descent
            at the beginning of a run: 32 suits runs of some hundred steps.
        threshold: Robust standard deviations above the median, larger than 0. With a floor of 0.15 nats, 16 is what
            keeps losses with heavy-tailed noise to one false alarm in a million steps; for normal noise, 8 is enough.
        warmup: Accepted values needed before anything finite can be an anomaly, from 2 to `window`.
        min_rise: Absolute floor of the rise, in the signal's own unit, at least 0.
        min_ratio: Relative floor: an anomaly is also larger than `min_ratio` times the median, at least 1.
        delay: Accepted values that a value must have after it to be compared with: a slow rise, or a cluster of values
            just below the limit, does not make itself the norm. In the beginning fewer, so that `warmup` is no longer.
        rebaseline: Share of anomalies above which they are a new level, at most 1; `None` for never.

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
        threshold: float = 16.0,
        warmup: int = 32,
        min_rise: float = 0.0,
        min_ratio: float = 1.0,
        delay: int = 16,
        rebaseline: float | None = 0.25,
    ) -> None:
        super().__init__(window, warmup, delay, min_rise, rebaseline)
        require("MedianDeviation", "threshold", threshold, threshold > 0, "larger than 0")
        fits = is_finite(min_ratio) and min_ratio >= 1
        require("MedianDeviation", "min_ratio", min_ratio, fits, "finite and at least 1")
        self.threshold = threshold
        self.min_ratio = min_ratio

    def _measure(self, windows: Array) -> tuple[Array, Array, Array]:
        median = _median(windows)
        spread, steps = _median(np.abs(windows - median[:, None])), _median(np.abs(np.diff(windows, axis=1)))
        deviation = _NORMAL_CONSISTENCY * np.minimum(spread, steps / math.sqrt(2.0))
        return median, np.maximum(self.threshold * deviation, (self.min_ratio - 1.0) * np.abs(median)), deviation


def _median(rows: Array) -> Array:
    ordered = np.sort(rows, axis=1)
    middle = ordered.shape[1] // 2
    return ordered[:, middle] if ordered.shape[1] % 2 else 0.5 * (ordered[:, middle - 1] + ordered[:, middle])
