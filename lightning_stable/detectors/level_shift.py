# SPDX-License-Identifier: Apache-2.0
"""A level that has risen slowly: what no rule for single values can see."""

import math
from collections.abc import Iterable
from typing import Any

import numpy as np

from lightning_stable.detectors.arguments import require
from lightning_stable.detectors.detector import Detector, Verdict, is_finite
from lightning_stable.detectors.scan import Scan, as_values


class LevelShift(Detector):
    """Call the value an anomaly that ends a block of which the level has risen above the best so far.

        level    = mean of the last `blocks` block means, each of `block` accepted values;   spread = their std
        best     = the lowest level so far, with its spread;   rise = max(min_rise, threshold * spread of the best)
        anomaly  <=>  value is not finite,  or  it ends a block, level > best + rise, and there is no alarm already
        score    = (level - best) / spread of the best at the end of a block, otherwise 0

    One alarm a rise: it is over when the level comes down to best + release * rise. A value that ends a block is no
    worse than those before it; what is anomalous is where they have come to.

    Deviations: the rule is our own. On the public curves it was made for it finds the slow divergences of eight small
    models, some thousand steps after they began, and raises no alarm in thirteen healthy runs.

    Args:
        block: Values in a block, at least 1.
        blocks: Blocks in a level, at least 2.
        min_rise: Least rise, in the signal's own unit, at least 0: nats of a loss.
        threshold: Least rise in standard deviations of block means, at least 0.
        release: Share of the rise at which the alarm is over, from 0 up to but not including 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> detector = LevelShift(block=2, blocks=2, threshold=0.0)
        >>> [detector.update(loss).is_anomaly for loss in (2.0, 2.0, 2.0, 2.0, 2.2, 2.2, 2.3, 2.3)]
        [False, False, False, False, False, False, False, True]
    """

    def __init__(
        self,
        block: int = 100,
        blocks: int = 20,
        min_rise: float = 0.1,
        threshold: float = 4.0,
        release: float = 0.5,
    ) -> None:
        require("LevelShift", "block", block, block >= 1, "at least 1")
        require("LevelShift", "blocks", blocks, blocks >= 2, "at least 2")
        require("LevelShift", "min_rise", min_rise, is_finite(min_rise) and min_rise >= 0, "finite and at least 0")
        require("LevelShift", "threshold", threshold, threshold >= 0, "at least 0")
        require("LevelShift", "release", release, 0 <= release < 1, "at least 0 and less than 1")
        self.block = block
        self.blocks = blocks
        self.min_rise = min_rise
        self.threshold = threshold
        self.release = release
        self._values: list[float] = []  # of the block that is not full yet
        self._means: list[float] = []
        self._best, self._spread = float("inf"), 0.0
        self._is_latched = False

    def judge(self, value: float) -> Verdict:
        """Say whether `value` ends a block whose level is too high."""
        if not is_finite(value):
            return Verdict(is_anomaly=True, score=float("inf"), threshold=float("inf"))
        if len(self._values) + 1 < self.block or len(self._means) + 1 < self.blocks or self._best == float("inf"):
            return Verdict(is_anomaly=False, score=0.0, threshold=float("inf"))
        _, level, _ = self._level([*self._values, value])
        rise = level - self._best
        score = 0.0 if not rise > 0 else rise / self._spread if self._spread > 0 else float("inf")
        is_anomaly = not self._is_latched and level > self._best + self._allowed_rise()
        return Verdict(is_anomaly, score, float("inf") if self._is_latched else self._largest_healthy())

    def accept(self, value: float) -> None:
        """Put `value` into the block; a full one may be the new best, or the end of an alarm."""
        self._values.append(value)
        if len(self._values) < self.block:
            return
        self._means, level, spread = self._level(self._values)
        self._values = []
        if len(self._means) < self.blocks:
            return
        if level <= self._best + self.release * self._allowed_rise():
            self._is_latched = False
        if level < self._best:
            self._best, self._spread = level, spread

    def reject(self, value: float) -> None:
        """End the block with `value`, and say nothing more of this rise."""
        if is_finite(value):
            self.accept(value)
            self._is_latched = True

    def state_dict(self) -> dict[str, Any]:
        """The block so far, the block means, the best level, and whether there is an alarm."""
        return {
            "values": list(self._values),
            "means": list(self._means),
            "best": self._best,
            "spread": self._spread,
            "is_latched": self._is_latched,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`."""
        self._values = list(state_dict["values"])
        self._means = state_dict["means"][-self.blocks :]
        self._best, self._spread = state_dict["best"], state_dict["spread"]
        self._is_latched = state_dict["is_latched"]

    def scan(self, values: Iterable[float]) -> Scan:
        """Do what `update` does for each of `values`, block by block."""
        numbers = as_values(values)
        finite = np.isfinite(numbers)
        found = Scan(~finite, np.where(finite, 0.0, np.inf), np.full(len(numbers), np.inf))
        where, start = np.flatnonzero(finite), 0
        while start < len(where):
            before_last = max(0, self.block - len(self._values) - 1)
            inside = where[start : start + before_last]
            self._values.extend(numbers[inside].tolist())
            start += before_last
            if start < len(where):
                found.put(int(where[start]), self.update(float(numbers[where[start]])))
                start += 1
        return found

    def _level(self, values: list[float]) -> tuple[list[float], float, float]:
        """The block means with that of `values`, their mean, and their spread."""
        with np.errstate(all="ignore"):  # values too large to be added up
            means = [*self._means, float(np.mean(values))][-self.blocks :]
            return means, float(np.mean(means)), float(np.std(means, ddof=1)) if len(means) > 1 else 0.0

    def _allowed_rise(self) -> float:
        return max(self.min_rise, self.threshold * self._spread)

    def _largest_healthy(self) -> float:
        """The value with which the level would be just as high as it may be."""
        others = sum(self._means[-(self.blocks - 1) :])
        mean = self.blocks * (self._best + self._allowed_rise()) - others
        largest = self.block * mean - sum(self._values)
        return float("inf") if math.isnan(largest) else largest
