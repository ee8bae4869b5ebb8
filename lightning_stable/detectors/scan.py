# SPDX-License-Identifier: Apache-2.0
"""The verdicts on a whole curve, as arrays."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

_SHORTEST, _LONGEST = 64, 4096  # values looked at together


@dataclass(frozen=True, eq=False)
class Scan:
    """What a detector says of each value of a curve.

    Args:
        is_anomaly: Booleans, one per value.
        score: As in `Verdict`.
        threshold: As in `Verdict`.

    Example:
        >>> from lightning_stable.detectors import Above
        >>> Above(2.0).scan([1.0, 3.0, 2.0, float("nan")]).alarms.tolist()
        [1, 3]
    """

    is_anomaly: NDArray[np.bool_]
    score: NDArray[np.float64]
    threshold: NDArray[np.float64]

    @classmethod
    def unknown(cls, length: int) -> "Scan":
        """Return room for `length` verdicts; until something is put there, nothing is an anomaly."""
        return cls(np.zeros(length, dtype=bool), np.zeros(length), np.full(length, np.inf))

    @property
    def alarms(self) -> NDArray[np.intp]:
        """The indices of the anomalies."""
        return np.flatnonzero(self.is_anomaly)

    def put(self, index: int, verdict: Any) -> None:
        """Enter the verdict on one value."""
        self.is_anomaly[index] = verdict.is_anomaly
        self.score[index] = verdict.score
        self.threshold[index] = verdict.threshold


def as_values(values: Iterable[float]) -> NDArray[np.float64]:
    """Return a curve as an array.

    Args:
        values: One axis of numbers: an array, a tensor, or anything to iterate over.

    Raises:
        ValueError: If there is more than one axis.

    Example:
        >>> as_values(x / 2 for x in range(3)).tolist()
        [0.0, 0.5, 1.0]
    """
    if isinstance(values, torch.Tensor):
        numbers = values.detach().double().cpu().numpy()
    else:
        numbers = np.asarray(values if hasattr(values, "__len__") else list(values), dtype=np.float64)
    if numbers.ndim != 1:
        raise ValueError(f"`scan(values=...)` must have one axis, got {numbers.ndim}.")
    return numbers


def scan_in_leaps(
    values: NDArray[np.float64],
    leap: Callable[[NDArray[np.float64], Scan, int], int],
    update: Callable[[float], Any],
) -> Scan:
    """Judge the healthy stretches of a curve at once, and what is between them one by one.

    Args:
        values: The curve.
        leap: Judges values from the first one on as long as they are healthy, remembers these, enters the verdicts
            from an index on, and returns how many they are.
        update: Judges one value, healthy or not.

    Example:
        >>> from lightning_stable.detectors import MedianDeviation
        >>> MedianDeviation(window=8, warmup=4).scan([1.0] * 500 + [2.0]).alarms.tolist()
        [500]
    """
    found, start, size = Scan.unknown(len(values)), 0, _SHORTEST
    while start < len(values):
        chunk = values[start : start + size]
        healthy = leap(chunk, found, start)
        start += healthy
        size = min(2 * size, _LONGEST) if healthy == len(chunk) else _SHORTEST
        if healthy < len(chunk):
            found.put(start, update(float(values[start])))
            start += 1
    return found
