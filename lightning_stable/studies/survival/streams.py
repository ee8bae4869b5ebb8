# SPDX-License-Identifier: Apache-2.0
"""The streams of the study: which batches are bad, of what kind, how many and how close together. No torch here."""

import random
from collections.abc import Mapping
from dataclasses import asdict, dataclass

from lightning_stable.studies.engine.study import Point

MIXED = ("random_bytes", "huge_scale", "shuffled_labels", "constant")  # all that leave the loss finite

_TITLES = {
    "none": "clean",
    "shuffled_labels": "shuffled labels",
    "random_bytes": "random bytes",
    "huge_scale": "huge inputs",
    "nan_embedding": "NaN",
    "mixed": "mixed",
}


@dataclass(frozen=True)
class Stream:
    """One training stream, the same for all sides.

    The stream is cut into blocks of `burst` batches. A share `rate` of the blocks, at least one, is bad; which ones is
    drawn from the seed alone, so that streams of one rate and burst are hit at the same places, whatever their kind. In
    a mixed stream the kinds take turns, in an order drawn from the seed.

    Args:
        kind: One of `testbeds.Corruption`, `mixed` for those that leave the loss finite in turn, or `none`.
        rate: Share of the batches that are bad, from 0 to 1.
        burst: Bad batches in a row.
        steps: Batches of the whole stream.

    Example:
        >>> Stream("random_bytes", rate=0.02, burst=1, steps=400).bad_batches(seed=0)
        {'random_bytes': [28, 38, 71, 90, 102, 118, 165, 379]}
        >>> Stream("mixed", rate=0.04, burst=8, steps=400).title
        'mixed, 4 %, bursts of 8'
    """

    kind: str = "none"
    rate: float = 0.0
    burst: int = 1
    steps: int = 400

    @classmethod
    def of(cls, point: Point) -> "Stream":
        """The stream of a trial's setting.

        Args:
            point: As `point` gives it.

        Example:
            >>> Stream.of(Stream("mixed", 0.02).point) == Stream("mixed", 0.02)
            True
        """
        return cls(str(point["kind"]), float(point["rate"] or 0.0), int(point["burst"] or 1), int(point["steps"] or 0))

    @property
    def point(self) -> Point:
        """What the study's storage knows the stream by."""
        return asdict(self)

    @property
    def is_clean(self) -> bool:
        """Whether no batch is bad."""
        return self.kind == "none"

    @property
    def title(self) -> str:
        """As tables and pictures name it."""
        kind = _TITLES[self.kind]
        if self.is_clean:
            return kind
        bursts = f", bursts of {self.burst}" if self.burst > 1 else ""
        return f"{kind}, {100 * self.rate:.3g} %{bursts}"

    def bad_batches(self, seed: int) -> Mapping[str, list[int]]:
        """From kind to the indices of its batches in the stream.

        Args:
            seed: Of the run.

        Example:
            >>> Stream("mixed", rate=0.04, burst=4, steps=100).bad_batches(seed=1)
            {'random_bytes': [68, 69, 70, 71]}
        """
        if self.is_clean:
            return {}
        blocks = self.steps // self.burst
        count = max(1, round(self.rate * blocks))
        drawn = random.Random(f"survival/{seed}/{self.rate}/{self.burst}").sample(range(blocks), count)
        kinds = MIXED if self.kind == "mixed" else (self.kind,)
        bad: dict[str, list[int]] = {}
        for turn, block in enumerate(drawn):
            first = block * self.burst
            bad.setdefault(kinds[turn % len(kinds)], []).extend(range(first, first + self.burst))
        return {kind: sorted(batches) for kind, batches in bad.items()}


def streams(quick: bool) -> list[Stream]:
    """Every stream of the study, the clean one first.

    Args:
        quick: Two corrupted streams, and short ones.

    Example:
        >>> [stream.title for stream in streams(quick=True)]
        ['clean', 'NaN, 0.5 %', 'mixed, 5 %']
    """
    steps = 200 if quick else 400
    singles = [("shuffled_labels", 0.02), ("random_bytes", 0.02), ("huge_scale", 0.02), ("nan_embedding", 0.005)]
    mixed = [("mixed", 0.01, 1), ("mixed", 0.05, 1), ("mixed", 0.04, 8)]
    if quick:
        singles, mixed = singles[-1:], mixed[1:2]
    return [
        Stream(steps=steps),
        *(Stream(kind, rate, steps=steps) for kind, rate in singles),
        *(Stream(kind, rate, burst, steps) for kind, rate, burst in mixed),
    ]
