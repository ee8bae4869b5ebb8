# SPDX-License-Identifier: Apache-2.0
"""An anomaly only if all detectors say so."""

import numpy as np
from numpy.typing import NDArray

from lightning_stable.detectors.combination import Combination
from lightning_stable.detectors.detector import Detector, Verdict
from lightning_stable.detectors.median_deviation import MedianDeviation
from lightning_stable.detectors.ratio import Ratio


class AllOf(Combination):
    """Call a value an anomaly if each of several detectors does.

    The verdict is that of the lowest score among those who call it healthy, or among all if none does. Each remembers
    the value as what it is to that one.

    Args:
        detectors: At least one; by default `MedianDeviation()` and `Ratio(ratio=1.5)`: far out, and large as well.

    Raises:
        ValueError: If there is none.

    Example:
        >>> from lightning_stable.detectors import Above, Below
        >>> detector = AllOf([Above(1.0), Below(2.0)])
        >>> [detector.update(value).is_anomaly for value in (0.5, 1.5, 2.5)]
        [False, True, False]
    """

    def __init__(self, detectors: list[Detector] | None = None) -> None:
        super().__init__([MedianDeviation(), Ratio(ratio=1.5)] if detectors is None else detectors)

    def _pick(self, verdicts: list[Verdict]) -> Verdict:
        return min(verdicts, key=lambda verdict: (verdict.is_anomaly, verdict.score))

    def _pick_healthy(self, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        return scores.argmin(axis=0)
