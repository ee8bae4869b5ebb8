# SPDX-License-Identifier: Apache-2.0
"""The contract of a detector: one number in, one verdict out, and only healthy numbers are remembered."""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from lightning_stable.detectors.scan import Scan, as_values


@dataclass(frozen=True)
class Verdict:
    """What a detector says of one value.

    Args:
        is_anomaly: Whether the value is one.
        score: How unusual the value is, in the detector's own dimensionless measure; `inf` for a non-finite value.
        threshold: The last value that would have passed, in the signal's unit; `inf` while nothing can be said yet.

    Example:
        >>> Verdict(is_anomaly=True, score=9.5, threshold=2.5).is_anomaly
        True
    """

    is_anomaly: bool
    score: float
    threshold: float


class Detector(ABC):
    """Judges a stream of scalars, one at a time.

    `judge` looks and remembers nothing; `accept` remembers a healthy value, `reject` that an anomaly was seen; `update`
    does what is needed of them. Whoever needs several detectors to agree (the guard) judges with all of them first and
    accepts or rejects afterwards. An anomaly never enters what later values are compared with.

    Example:
        >>> from lightning_stable.detectors import NonFinite
        >>> isinstance(NonFinite(), Detector)
        True
    """

    @abstractmethod
    def judge(self, value: float) -> Verdict:
        """Say whether `value` is an anomaly, given what was accepted so far. A non-finite value always is one."""

    @abstractmethod
    def accept(self, value: float) -> None:
        """Remember a healthy value."""

    def reject(self, value: float) -> None:  # noqa: B027  # most have nothing to remember of an anomaly
        """Remember that `value` was an anomaly to this detector; a non-finite one leaves no trace."""

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """Everything the next verdict depends on, in plain types."""

    @abstractmethod
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up where `state_dict` was written."""

    def update(self, value: float) -> Verdict:
        """Judge `value`, and remember it unless it is an anomaly."""
        verdict = self.judge(value)
        (self.reject if verdict.is_anomaly else self.accept)(value)
        return verdict

    def scan(self, values: Iterable[float]) -> Scan:
        """Do what `update` does for each of `values`, and return all verdicts: the same, but faster where it can be."""
        numbers = as_values(values)
        found = Scan.unknown(len(numbers))
        for index, value in enumerate(numbers.tolist()):
            found.put(index, self.update(value))
        return found


def is_finite(value: float) -> bool:
    """Whether `value` is neither NaN nor infinite.

    Example:
        >>> is_finite(float("nan")), is_finite(1.0)
        (False, True)
    """
    return math.isfinite(value)
