# SPDX-License-Identifier: Apache-2.0
"""A value above a fixed limit."""

from collections.abc import Iterable
from typing import Any

import numpy as np

from lightning_stable.detectors.arguments import require
from lightning_stable.detectors.detector import Detector, Verdict, is_finite
from lightning_stable.detectors.scan import Scan, as_values


class Above(Detector):
    """Call a value an anomaly when it is above a limit.

        anomaly  <=>  value is not finite,  or  value > limit
        score     = max(0, value - limit) / |limit|

    Args:
        limit: The largest healthy value, finite. The default is where attention logits are usually clipped.

    Raises:
        ValueError: If `limit` is not finite.

    Example:
        >>> Above(100.0).update(120.0)
        Verdict(is_anomaly=True, score=0.2, threshold=100.0)
    """

    def __init__(self, limit: float = 100.0) -> None:
        require("Above", "limit", limit, is_finite(limit), "finite")
        self.limit = limit

    def judge(self, value: float) -> Verdict:
        """Say whether `value` is above the limit."""
        if not is_finite(value):
            return Verdict(is_anomaly=True, score=float("inf"), threshold=self.limit)
        excess = max(0.0, value - self.limit)
        score = excess / abs(self.limit) if self.limit else float("inf") if excess else 0.0
        return Verdict(is_anomaly=value > self.limit, score=score, threshold=self.limit)

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
            excess = np.maximum(0.0, np.where(finite, numbers, np.inf) - self.limit)
            score = excess / abs(self.limit) if self.limit else np.where(excess > 0, np.inf, 0.0)
        return Scan(~finite | (numbers > self.limit), score, np.full(len(numbers), float(self.limit)))
