# SPDX-License-Identifier: Apache-2.0
"""An anomaly as soon as one detector says so."""

import numpy as np
from numpy.typing import NDArray

from lightning_stable.detectors.combination import Combination
from lightning_stable.detectors.detector import Detector, Verdict
from lightning_stable.detectors.level_shift import LevelShift
from lightning_stable.detectors.median_deviation import MedianDeviation


class AnyOf(Combination):
    """Call a value an anomaly if at least one of several detectors does.

    The verdict is that of the highest score among those who call it one, or among all if none does. What one of them
    calls an anomaly none of them remembers as healthy.

    Args:
        detectors: At least one; by default a rule for single values and one for slow divergence: `MedianDeviation()`
            and `LevelShift()`.

    Raises:
        ValueError: If there is none.

    Example:
        >>> from lightning_stable.detectors import Above, Below
        >>> detector = AnyOf([Above(2.0), Below(1.0)])
        >>> [detector.update(value).is_anomaly for value in (0.5, 1.5, 2.5)]
        [True, False, True]
    """

    def __init__(self, detectors: list[Detector] | None = None) -> None:
        super().__init__([MedianDeviation(), LevelShift()] if detectors is None else detectors)

    def _pick(self, verdicts: list[Verdict]) -> Verdict:
        return max(verdicts, key=lambda verdict: (verdict.is_anomaly, verdict.score))

    def _pick_healthy(self, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        return scores.argmax(axis=0)
