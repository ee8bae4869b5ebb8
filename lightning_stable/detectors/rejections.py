# SPDX-License-Identifier: Apache-2.0
"""Tells a change of level from spikes: spikes are rare."""

from collections import deque
from typing import Any

from lightning_stable.detectors.detector import is_finite

_SHORTEST_SPAN = 64  # values; in fewer, a quarter would be a handful of spikes


class Rejections:
    """Remembers the latest rejected values, and says when they are too many to be spikes.

    Args:
        window: Of the detector; the latest so many values count, or 64 if that is more.
        share: Of them, above which rejected values are the new level and no anomalies; `None` for never.

    Example:
        >>> rejections = Rejections(window=64, share=0.25)
        >>> for _ in range(16):
        ...     rejections.add(9.0)
        >>> rejections.next_is_level_change  # the seventeenth of 64 would be more than a quarter
        True
    """

    def __init__(self, window: int, share: float | None) -> None:
        self._span = max(window, _SHORTEST_SPAN)
        self._allowed = None if share is None else share * self._span
        self._seen = 0
        self._rejected: deque[tuple[int, float]] = deque()

    @property
    def next_is_level_change(self) -> bool:
        """Whether one rejected value more would be one too many."""
        if self._allowed is None:
            return False
        recent = sum(when > self._seen + 1 - self._span for when, _ in self._rejected)
        return recent + 1 > self._allowed

    def add(self, value: float) -> None:
        """Note a rejected value; one that is not finite is no new level."""
        if is_finite(value):
            self.pass_over(1)
            self._rejected.append((self._seen, value))

    def pass_over(self, count: int) -> None:
        """Note that so many healthy values went by."""
        self._seen += count
        while self._rejected and self._rejected[0][0] <= self._seen - self._span:
            self._rejected.popleft()

    def take(self) -> list[float]:
        """The rejected values, which are forgotten with this."""
        values = [value for _, value in self._rejected]
        self._rejected.clear()
        return values

    def state_dict(self) -> dict[str, Any]:
        """What was rejected, and how long ago."""
        return {"ages": [self._seen - when for when, _ in self._rejected], "values": [v for _, v in self._rejected]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`."""
        self._seen = 0
        self._rejected = deque(
            (-age, value) for age, value in zip(state_dict["ages"], state_dict["values"], strict=True)
        )
