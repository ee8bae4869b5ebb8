# SPDX-License-Identifier: Apache-2.0
"""What came out of a study: for every side in every setting its best tuning point, and the mean and spread there."""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from statistics import fmean, stdev

from lightning_stable.studies.engine.study import Point, Trial, point_key


@dataclass(frozen=True)
class Result:
    """What came out of one run.

    Args:
        trial: Which one.
        numbers: What it returned; empty if it failed.
        error: What was raised, or None.
        seconds: How long it took.

    Example:
        >>> Result(Trial("rex"), {"error": 0.1}).numbers["error"]
        0.1
    """

    trial: Trial
    numbers: Mapping[str, float] = field(default_factory=dict)
    error: str | None = None
    seconds: float = math.nan


@dataclass(frozen=True)
class Cell:
    """One side in one setting, at the tuning point that was chosen for it.

    Args:
        side: The side.
        setting: The setting.
        tuning: The point with the smallest mean objective.
        results: The runs there, one a seed.
        at_edge: The tuned names whose chosen value is the smallest or largest of three values or more.

    Example:
        >>> cell = Cell("rex", {}, {"lr": 0.1}, [Result(Trial("rex"), {"error": error}) for error in (0.1, 0.3)])
        >>> round(cell.mean("error"), 3), round(cell.spread("error"), 3)
        (0.2, 0.141)
    """

    side: str
    setting: Point
    tuning: Point
    results: Sequence[Result]
    at_edge: tuple[str, ...] = ()

    def values(self, name: str) -> list[float]:
        """The number of every seed; a run without it counts as NaN.

        Args:
            name: As `Study.run` returned it.
        """
        return [result.numbers.get(name, math.nan) for result in self.results]

    def mean(self, name: str) -> float:
        """The mean over the seeds.

        Args:
            name: As `Study.run` returned it.
        """
        return fmean(self.values(name)) if self.results else math.nan

    def spread(self, name: str) -> float:
        """The standard deviation over the seeds (with n - 1); NaN for one seed.

        Args:
            name: As `Study.run` returned it.
        """
        values = self.values(name)
        if len(values) < 2 or not all(map(math.isfinite, values)):
            return math.nan
        return stdev(values)


class Outcome:
    """Everything that is known of a study's runs.

    Args:
        results: Of the runs that are complete or failed.
        objective: The number that chooses the tuning points: the smallest mean over the seeds.

    Example:
        >>> runs = [Result(Trial("rex", {}, {"lr": lr}, seed), {"error": lr}) for lr in (0.2, 0.1) for seed in (0, 1)]
        >>> outcome = Outcome(runs, "error")
        >>> outcome.cell("rex", {}).tuning, outcome.sides, outcome.settings
        ({'lr': 0.1}, ['rex'], [{}])
    """

    def __init__(self, results: Iterable[Result], objective: str) -> None:
        self.results = list(results)
        self.objective = objective
        self.sides: list[str] = list(dict.fromkeys(result.trial.side for result in self.results))
        self.settings: list[Point] = list(
            {point_key(result.trial.setting): result.trial.setting for result in self.results}.values()
        )
        self._groups: dict[tuple[str, str], dict[str, list[Result]]] = {}
        for result in self.results:
            group = self._groups.setdefault((result.trial.side, point_key(result.trial.setting)), {})
            group.setdefault(point_key(result.trial.tuning), []).append(result)

    @property
    def failed(self) -> list[Result]:
        """The runs that raised something."""
        return [result for result in self.results if result.error is not None]

    def cell(self, side: str, setting: Point) -> Cell | None:
        """The side in this setting at its best tuning point; None if it has no run there.

        A failed run counts as the worst there is, as one that diverged does.

        Args:
            side: One of `sides`.
            setting: One of `settings`.
        """
        groups = self._groups.get((side, point_key(setting)))
        if not groups:
            return None
        best = min(groups.values(), key=self._score)
        tuning = best[0].trial.tuning
        return Cell(side, setting, tuning, best, _edges(tuning, [runs[0].trial.tuning for runs in groups.values()]))

    def ranks(self, setting: Point, name: str | None = None) -> dict[str, float]:
        """The rank of each side in a setting, from 1; sides that are equal share the mean of their ranks.

        Args:
            setting: One of `settings`.
            name: The number that ranks, small is good; None takes the objective.
        """
        means = {
            side: _worst_if_nan(cell.mean(name or self.objective))
            for side in self.sides
            if (cell := self.cell(side, setting)) is not None
        }
        return {
            side: 1.0 + sum(other < mean for other in means.values()) + (list(means.values()).count(mean) - 1) / 2
            for side, mean in means.items()
        }

    def _score(self, results: Sequence[Result]) -> float:
        return fmean(_worst_if_nan(result.numbers.get(self.objective, math.nan)) for result in results)


def _worst_if_nan(value: float) -> float:
    return math.inf if math.isnan(value) else value


def _edges(chosen: Point, points: Sequence[Point]) -> tuple[str, ...]:
    """The names whose value is at the edge of what was tried: the best may lie outside."""
    names = []
    for name, value in chosen.items():
        tried = {point[name] for point in points if name in point}
        numbers = [other for other in tried if isinstance(other, int | float) and not isinstance(other, bool)]
        if len(numbers) == len(tried) >= 3 and value in (min(numbers), max(numbers)):
            names.append(name)
    return tuple(names)
