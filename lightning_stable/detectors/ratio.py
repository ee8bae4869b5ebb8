# SPDX-License-Identifier: Apache-2.0
"""A value several times the mean of the few before it."""

import numpy as np

from lightning_stable.detectors.arguments import require
from lightning_stable.detectors.detector import is_finite
from lightning_stable.detectors.window_detector import Array, WindowDetector


class Ratio(WindowDetector):
    """Call a value an anomaly when it is more than `ratio` times the mean of the few accepted before it.

        anomaly  <=>  value is not finite,  or  value > mean + max((ratio - 1) * |mean|, min_rise)
        score     = (value - mean) / |mean|

    The rule of Lightning's `SpikeDetection`, with its defaults (there called rtol = ratio - 1 = 2, atol = min_rise).

    Deviations from it: spikes and NaN never enter the mean; the window is in the `state_dict` (there, loading one
    fails); a rise must be larger than both floors and not just as large; and when more than `rebaseline` of the latest
    64 values are anomalies, they are a new level and become the window.

    Args:
        window: How many accepted values the mean is of, at least 1.
        ratio: Times the mean, larger than 1. 3 sees a loss explode, and nothing less: a spike from 3 to 8 is none.
        warmup: Accepted values needed before anything finite can be an anomaly, from 1 to `window`.
        min_rise: Absolute floor of the rise, in the signal's own unit, at least 0: without one, a loss close to zero
            raises alarms over nothing.
        rebaseline: Share of anomalies above which they are a new level, at most 1; `None` for never.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> detector = Ratio()
        >>> [detector.update(loss).is_anomaly for loss in (3.0, 3.0, 8.0, 15.0, 3.0)]
        [False, False, False, True, False]
    """

    def __init__(
        self,
        window: int = 10,
        ratio: float = 3.0,
        warmup: int = 1,
        min_rise: float = 0.0,
        rebaseline: float | None = 0.25,
    ) -> None:
        super().__init__(window, warmup, 0, min_rise, rebaseline, shortest_warmup=1)
        require("Ratio", "ratio", ratio, is_finite(ratio) and ratio > 1, "finite and larger than 1")
        self.ratio = ratio

    def _measure(self, windows: Array) -> tuple[Array, Array, Array]:
        mean = np.ascontiguousarray(windows).mean(axis=1)  # summed in the same order, however many rows there are
        return mean, (self.ratio - 1.0) * np.abs(mean), np.abs(mean)
