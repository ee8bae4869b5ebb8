# SPDX-License-Identifier: Apache-2.0
"""A value below a fixed limit."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lightning_stable.detectors.arguments import require
from lightning_stable.detectors.detector import Detector, Verdict, is_finite
from lightning_stable.detectors.scan import Scan, as_values


class Below(Detector):
    """Call a value an anomaly when it is below a limit: an attention entropy that collapses, a rank, a gate.

        anomaly  <=>  value is not finite,  or  value < limit
        score     = max(0, limit - value) / |limit|

    Args:
        limit: The smallest healthy value, finite. The default suits an attention entropy in nats.

    Raises:
        ValueError: If `limit` is not finite.

    Example:
        >>> Below(0.5).update(0.25)
        Verdict(is_anomaly=True, score=0.5, threshold=0.5)
    """

    def __init__(self, limit: float = 0.1) -> None:
        require("Below", "limit", limit, is_finite(limit), "finite")
        self.limit = limit

    def judge(self, value: float) -> Verdict:
        """Say whether `value` is below the limit."""
        if not is_finite(value):
            return Verdict(is_anomaly=True, score=float("inf"), threshold=self.limit)
        shortfall = max(0.0, self.limit - value)
        score = shortfall / abs(self.limit) if self.limit else float("inf") if shortfall else 0.0
        return Verdict(is_anomaly=value < self.limit, score=score, threshold=self.limit)

    def accept(self, value: float) -> None:
        """Nothing is remembered."""

    def state_dict(self) -> dict[str, Any]:
        """There is no state."""
        return {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """There is no state."""

    def scan(self, values: Iterable[float]) -> Scan:
        """Judge all of `values` at once."""
        numbers = as_values(values)
        finite = np.isfinite(numbers)
        with np.errstate(over="ignore"):
            shortfall = np.maximum(0.0, self.limit - np.where(finite, numbers, -np.inf))
            score = shortfall / abs(self.limit) if self.limit else np.where(shortfall > 0, np.inf, 0.0)
        return Scan(~finite | (numbers < self.limit), score, np.full(len(numbers), float(self.limit)))
