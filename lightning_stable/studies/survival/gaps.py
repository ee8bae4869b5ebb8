# SPDX-License-Identifier: Apache-2.0
"""How far a side ends from its own clean run, seed by seed, and what becomes of a mean where a run was lost."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import fmean, stdev

from lightning_stable.studies.engine.outcome import Outcome
from lightning_stable.studies.survival.streams import Stream

LOST_ABOVE = math.log(256)  # nats: what guessing bytes comes to


@dataclass(frozen=True)
class Gap:
    """The gaps of one side on one stream.

        gap of a seed = final loss on the stream - final loss of the same side and seed on the clean stream

    A run is *lost* if its final loss is not finite or no better than guessing; its gap is infinite. If the clean run is
    lost or failed, the run has *no reference*, and no gap. Mean and spread are of the other seeds, and never stand
    without the numbers of those that are left out.

    Args:
        survived: From seed to gap, for the runs that are not lost and have a reference.
        lost: How many with a reference are lost.
        no_reference: How many have none.

    Example:
        >>> str(Gap({0: 0.02, 1: 0.04})), str(Gap({0: 0.02}, lost=2)), str(Gap({}, lost=3))
        ('0.030 ± 0.014', 'lost 2 of 3, else 0.020', 'lost 3 of 3')
        >>> str(Gap({0: 0.02}, lost=1, no_reference=1))
        'lost 1 of 3, no reference for 1 of 3, else 0.020'
    """

    survived: Mapping[int, float]
    lost: int = 0
    no_reference: int = 0

    @property
    def mean(self) -> float:
        """Of the runs that survived; infinite if there is none."""
        return fmean(self.survived.values()) if self.survived else math.inf

    @property
    def spread(self) -> float:
        """Their standard deviation, with n - 1; 0 for one."""
        return stdev(self.survived.values()) if len(self.survived) > 1 else 0.0

    @property
    def without(self) -> int:
        """How many runs are without a gap: a clean run that is lost speaks no better of a side than any other."""
        return self.lost + self.no_reference

    @property
    def order(self) -> tuple[int, float]:
        """Small is good: first as few runs without a gap as can be, then a small gap."""
        return self.without, self.mean

    def __str__(self) -> str:
        runs = len(self.survived) + self.without
        words = [f"lost {self.lost} of {runs}"] * (self.lost > 0)
        words += [f"no reference for {self.no_reference} of {runs}"] * (self.no_reference > 0)
        if self.survived:
            spread = f" ± {self.spread:.3f}" if len(self.survived) > 1 else ""
            words.append(f"{'else ' if words else ''}{self.mean:.3f}{spread}")
        return ", ".join(words)


def gaps(outcome: Outcome, stream: Stream) -> dict[str, Gap]:
    """From side to its gap on this stream, for the sides whose clean runs are there, too.

    Args:
        outcome: Of the study.
        stream: A corrupted one.

    Example:
        >>> gaps(Outcome([], "loss"), Stream("mixed", 0.05))
        {}
    """
    clean = Stream(steps=stream.steps)
    found = {}
    for side in outcome.sides:
        before, after = _losses(outcome, side, clean), _losses(outcome, side, stream)
        pairs = {seed: (loss, before[seed]) for seed, loss in after.items() if seed in before}
        if pairs:
            found[side] = _gap(pairs)
    return found


def _gap(pairs: Mapping[int, tuple[float, float]]) -> Gap:
    """Of the final losses of each seed, on the stream and on the clean one."""
    good = {seed: pair for seed, pair in pairs.items() if not is_lost(pair[1])}
    survived = {seed: loss - reference for seed, (loss, reference) in good.items() if not is_lost(loss)}
    return Gap(survived, len(good) - len(survived), len(pairs) - len(good))


def is_lost(loss: float) -> bool:
    """Whether a final loss is that of a run that has not survived.

    Args:
        loss: Of validation, in nats.

    Example:
        >>> is_lost(2.3), is_lost(5.6), is_lost(float("nan"))
        (False, True, True)
    """
    return not loss <= LOST_ABOVE


def streams_of(outcome: Outcome) -> list[Stream]:
    """The streams that have runs, in the order of the study.

    Args:
        outcome: Of the study.

    Example:
        >>> streams_of(Outcome([], "loss"))
        []
    """
    return [Stream.of(setting) for setting in outcome.settings]


def _losses(outcome: Outcome, side: str, stream: Stream) -> dict[int, float]:
    cell = outcome.cell(side, stream.point)
    results = [] if cell is None else cell.results
    return {result.trial.seed: result.numbers.get("loss", math.nan) for result in results}
