# SPDX-License-Identifier: Apache-2.0
"""A logged curve, handed through a detector as if the run were going on."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from lightning_stable.detectors import Detector, LevelShift, Scan
from lightning_stable.studies.curve import Curve

_SHORTEST, _LONGEST = 1 << 10, 1 << 16  # values between two reports of progress
_RESOLVED = 1e10  # times a number that float64 can hold with it in one sum
_FIELDS = ("is_anomaly", "score", "threshold")
Floats = NDArray[np.float64]
Progress = Callable[[str, float], None]
"""Is told what is going on, and which share of it is done."""


@dataclass(frozen=True)
class Streak:
    """Alarms at values that follow each other.

    Args:
        first: The index of the first one.
        length: How many they are.

    Example:
        >>> Streak(first=7, length=3).length
        3
    """

    first: int
    length: int


@dataclass(frozen=True, eq=False)
class Replay:
    """What a detector said of a curve, and what it looked at.

    Args:
        label: The detector, as it was asked for.
        curve: The curve.
        scan: The verdicts.
        judges_level: Whether it looks at a level, over many values, and not at the values themselves.
        judged: The values or levels that were judged, NaN where nothing was.
        limit: What would have been too much of them, `inf` while there is no telling.

    Example:
        >>> curve = Curve("loss", np.arange(4.0), np.array([1.0, 9.0, 9.0, 1.0]))
        >>> from lightning_stable.detectors import Above
        >>> replay("Above(limit=2.0)", Above(2.0), curve).streaks
        [Streak(first=1, length=2)]
    """

    label: str
    curve: Curve
    scan: Scan
    judges_level: bool
    judged: Floats
    limit: Floats

    @property
    def alarms(self) -> NDArray[np.intp]:
        """The indices of the alarms."""
        return self.scan.alarms

    @property
    def per_million(self) -> float:
        """Alarms per million values."""
        return 1e6 * len(self.alarms) / len(self.curve)

    @property
    def streaks(self) -> list[Streak]:
        """The alarms, those together that follow each other."""
        alarms = self.alarms
        groups = np.split(alarms, np.flatnonzero(np.diff(alarms) > 1) + 1)
        return [Streak(int(group[0]), len(group)) for group in groups if len(group)]

    @property
    def had_no_limit(self) -> bool:
        """Whether no finite value could have been an alarm: mostly because the curve is shorter than its warm-up."""
        return not np.isfinite(self.scan.threshold).any() and not np.isfinite(self.curve.values[self.alarms]).any()


def replay(label: str, detector: Detector, curve: Curve, progress: Progress | None = None) -> Replay:
    """Hand a curve through a detector.

    Args:
        label: What the detector is called.
        detector: It remembers the curve afterwards.
        curve: The curve.
        progress: Told now and then how far it is.

    Example:
        >>> from lightning_stable.detectors import NonFinite
        >>> replay("NonFinite()", NonFinite(), Curve("loss", np.arange(2.0), np.array([1.0, np.nan]))).per_million
        500000.0
    """
    parts = []
    for done, part in scan_in_parts(detector, curve.values):
        parts.append(part)
        if progress:
            progress(f"{label}: judging", done / len(curve))
    scan = Scan(*(np.concatenate([getattr(part, name) for part in parts]) for name in _FIELDS))
    if isinstance(detector, LevelShift):
        with np.errstate(over="ignore", invalid="ignore"):
            return Replay(label, curve, scan, True, *_levels(detector, curve.values, scan))
    return Replay(label, curve, scan, False, curve.values, scan.threshold)


def scan_in_parts(detector: Detector, values: Floats) -> Iterator[tuple[int, Scan]]:
    """Scan a curve piece by piece, in growing pieces; with each comes how many values are done.

    Args:
        detector: It remembers the curve afterwards.
        values: The curve.

    Example:
        >>> from lightning_stable.detectors import Above
        >>> [(done, scan.alarms.tolist()) for done, scan in scan_in_parts(Above(2.0), np.array([1.0, 3.0]))]
        [(2, [1])]
    """
    done, size = 0, _SHORTEST
    while done < len(values):
        with np.errstate(over="ignore", invalid="ignore"):  # a run that goes astray does so by orders of magnitude
            scan = detector.scan(values[done : done + size])
        done, size = done + len(scan.score), min(2 * size, _LONGEST)
        yield done, scan


def _levels(detector: LevelShift, values: Floats, scan: Scan) -> tuple[Floats, Floats]:
    """The level at the end of each block, and how high it might have been.

    The threshold of the verdict is the last value of the block with which the level were at its limit; one value is but
    a small part of a level.
    """
    level, limit = np.full(len(values), np.nan), np.full(len(values), np.inf)
    finite = np.flatnonzero(np.isfinite(values))
    blocks = len(finite) // detector.block
    if blocks >= detector.blocks:
        means = values[finite[: blocks * detector.block]].reshape(blocks, detector.block).mean(axis=1)
        ends = finite[detector.block - 1 :: detector.block][detector.blocks - 1 : blocks]
        level[ends] = np.lib.stride_tricks.sliding_window_view(means, detector.blocks).mean(axis=1)
        span = detector.block * detector.blocks
        limit[ends] = level[ends] + (scan.threshold[ends] - values[ends]) / span
        for before, end in pairwise(ends):  # of a level of 1e26 one cannot see any more what was allowed
            known = np.isfinite(limit[before]) and np.isfinite(scan.threshold[end])
            if known and abs(level[end]) > _RESOLVED * abs(limit[before]):
                limit[end] = limit[before]
    return level, limit
