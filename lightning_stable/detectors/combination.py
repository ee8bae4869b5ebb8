# SPDX-License-Identifier: Apache-2.0
"""What detectors have in common that ask several others."""

import copy
from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from lightning_stable.detectors.arguments import require
from lightning_stable.detectors.detector import Detector, Verdict
from lightning_stable.detectors.scan import Scan, as_values, scan_in_leaps


class Combination(Detector, ABC):
    """Asks several detectors, each of which remembers what is healthy to itself.

    Args:
        detectors: At least one.

    Raises:
        ValueError: If there is none.

    Example:
        >>> from lightning_stable.detectors import AnyOf
        >>> isinstance(AnyOf(), Combination)
        True
    """

    def __init__(self, detectors: Sequence[Detector]) -> None:
        self.detectors = list(detectors)
        require(type(self).__name__, "detectors", self.detectors, bool(self.detectors), "at least one detector")

    @abstractmethod
    def _pick(self, verdicts: list[Verdict]) -> Verdict:
        """The verdict that stands for all."""

    @abstractmethod
    def _pick_healthy(self, scores: NDArray[np.float64]) -> NDArray[np.intp]:
        """For each column of `scores`, in which nobody found an anomaly, the row of the verdict that stands for all."""

    def judge(self, value: float) -> Verdict:
        """Ask all of them."""
        return self._pick([detector.judge(value) for detector in self.detectors])

    def accept(self, value: float) -> None:
        """Let each remember `value` as what it is to that one."""
        for detector in self.detectors:
            (detector.reject if detector.judge(value).is_anomaly else detector.accept)(value)

    def reject(self, value: float) -> None:
        """Tell those to whom `value` is an anomaly; the others must not remember it."""
        for detector in self.detectors:
            if detector.judge(value).is_anomaly:
                detector.reject(value)

    def state_dict(self) -> dict[str, Any]:
        """The state of each of them, in their order."""
        return {"detectors": [detector.state_dict() for detector in self.detectors]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`, which must be of as many detectors."""
        states = state_dict["detectors"]
        if len(states) != len(self.detectors):
            raise ValueError(
                f"this `{type(self).__name__}` has {len(self.detectors)} detectors, the state {len(states)}."
            )
        for detector, state in zip(self.detectors, states, strict=True):
            detector.load_state_dict(state)

    def scan(self, values: Iterable[float]) -> Scan:
        """Do what `update` does for each of `values`, a few thousand at once."""
        return scan_in_leaps(as_values(values), self._leap, self.update)

    def _leap(self, chunk: NDArray[np.float64], found: Scan, start: int) -> int:
        ahead = [detector.scan(chunk) for detector in copy.deepcopy(self.detectors)]
        alarms = np.logical_or.reduce([scan.is_anomaly for scan in ahead])
        healthy = int(alarms.argmax()) if alarms.any() else len(chunk)
        for detector in self.detectors:
            detector.scan(chunk[:healthy])
        scores, thresholds = (
            np.array([getattr(scan, name)[:healthy] for scan in ahead]) for name in ("score", "threshold")
        )
        picked = self._pick_healthy(scores), np.arange(healthy)
        found.score[start : start + healthy] = scores[picked]
        found.threshold[start : start + healthy] = thresholds[picked]
        return healthy
