# SPDX-License-Identifier: Apache-2.0
"""How far a side ends from its own clean run, seed by seed, and what becomes of a mean where a run was lost."""

import math
from dataclasses import dataclass
from statistics import fmean, stdev

from lightning_stable.studies.engine.outcome import Outcome
from lightning_stable.studies.survival.streams import Stream

LOST_ABOVE = math.log(256)  # nats: what guessing bytes comes to


@dataclass(frozen=True)
class Gap:
    """The gaps of one side on one stream.

        gap of a seed = final loss on the stream - final loss of the same side and seed on the clean stream

    A run is *lost* if its final loss is not finite or no better than guessing; its gap is infinite. Mean and spread are
    of the other seeds, and never stand without the number of those that are lost.

    Args:
        survived: The gaps of the runs that are not lost.
        lost: How many are.

    Example:
        >>> str(Gap((0.02, 0.04), lost=0)), str(Gap((0.02,), lost=2)), str(Gap((), lost=3))
        ('0.030 ± 0.014', 'lost 2 of 3, else 0.020', 'lost 3 of 3')
    """

    survived: tuple[float, ...]
    lost: int

    @property
    def mean(self) -> float:
        """Of the runs that survived; infinite if there is none."""
        return fmean(self.survived) if self.survived else math.inf

    @property
    def spread(self) -> float:
        """Their standard deviation, with n - 1; 0 for one."""
        return stdev(self.survived) if len(self.survived) > 1 else 0.0

    @property
    def order(self) -> tuple[int, float]:
        """Small is good: first as few runs lost as can be, then a small gap."""
        return self.lost, self.mean

    def __str__(self) -> str:
        runs = len(self.survived) + self.lost
        if not self.survived:
            return f"lost {self.lost} of {runs}"
        mean = f"{self.mean:.3f} ± {self.spread:.3f}" if len(self.survived) > 1 else f"{self.mean:.3f}"
        return f"lost {self.lost} of {runs}, else {mean}" if self.lost else mean


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
        pairs = [(loss, before[seed]) for seed, loss in after.items() if seed in before]
        if pairs:
            survived = tuple(loss - reference for loss, reference in pairs if not is_lost(loss))
            found[side] = Gap(survived, len(pairs) - len(survived))
    return found


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
