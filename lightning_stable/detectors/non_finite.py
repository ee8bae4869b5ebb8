# SPDX-License-Identifier: Apache-2.0
"""NaN and infinity are anomalies; everything else is not."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lightning_stable.detectors.detector import Detector, Verdict, is_finite
from lightning_stable.detectors.scan import Scan, as_values


class NonFinite(Detector):
    """Call NaN and infinity anomalies, and nothing else.

    Example:
        >>> detector = NonFinite()
        >>> detector.update(1e30).is_anomaly, detector.update(float("nan")).is_anomaly
        (False, True)
    """

    def judge(self, value: float) -> Verdict:
        """Say whether `value` is NaN or infinite."""
        if is_finite(value):
            return Verdict(is_anomaly=False, score=0.0, threshold=float("inf"))
        return Verdict(is_anomaly=True, score=float("inf"), threshold=float("inf"))

    def accept(self, value: float) -> None:
        """Nothing is remembered."""

    def state_dict(self) -> dict[str, Any]:
        """There is no state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is no state."""

    def scan(self, values: Iterable[float]) -> Scan:
        """Judge all of `values` at once."""
        infinite = ~np.isfinite(as_values(values))
        return Scan(infinite, np.where(infinite, np.inf, 0.0), np.full(len(infinite), np.inf))
