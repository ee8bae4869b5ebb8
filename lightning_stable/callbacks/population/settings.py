# SPDX-License-Identifier: Apache-2.0
"""What a user of `PopulationBasedTraining` sets, checked."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random
from typing import Any, Literal

from lightning_stable.callbacks.population.exploit_explore import SearchSpace, truncation_selection

Mode = Literal["min", "max"]
_CALL = "PopulationBasedTraining"


@dataclass(frozen=True)
class Settings:
    """The arguments of `PopulationBasedTraining` that make up the search.

    Args:
        population: Number of members.
        interval: Optimizer steps of a turn.
        ranges: From name to the smallest and the largest value.
        choices: From name to the values there are.
        initial: Values that the first members begin with.
        monitor: What a member is judged by.
        mode: `min` or `max`, what is better.
        fraction: How many give up, and how many are copied, of all.
        seed: Of all draws.

    Raises:
        ValueError: If one is out of bounds.

    Example:
        >>> Settings(2, 10, {"lr": [0.1, 1.0]}, {}, [{"lr": 0.5}], "val_loss", "min", 0.2, 0).beginning(0)
        {'lr': 0.5}
    """

    population: int
    interval: int
    ranges: Mapping[str, Sequence[float]]
    choices: Mapping[str, Sequence[float]]
    initial: Sequence[Mapping[str, float]]
    monitor: str
    mode: Mode
    fraction: float
    seed: int

    def __post_init__(self) -> None:
        _require_whole("population", self.population, 2, "One member has nobody to copy.")
        _require_whole("interval", self.interval, 1)
        _require_whole("seed", self.seed, 0)
        if self.mode not in ("min", "max"):
            raise ValueError(f'`{_CALL}(mode=...)` must be "min" or "max", got {self.mode!r}.')
        if not isinstance(self.monitor, str) or not self.monitor:
            raise ValueError(f"`{_CALL}(monitor=...)` must be the key of a logged value, got {self.monitor!r}.")
        if not _is_number(self.fraction) or not 0 < self.fraction <= 0.5:
            raise ValueError(
                f"`{_CALL}(fraction=...)` must be above 0 and at most 0.5, got {self.fraction!r}."
                " Nobody can be at the top and at the bottom."
            )
        for name, values in self.ranges.items():
            _check_range(name, values)
        for name, values in self.choices.items():
            _check_choices(name, values)
        if both := sorted(set(self.ranges) & set(self.choices)):
            raise ValueError(f"`{_CALL}` has {both[0]!r} in `search` and in `choices`. Leave it out of one of them.")
        self._check_initial()

    @property
    def space(self) -> SearchSpace:
        """What may be tried."""
        return SearchSpace(self.ranges, self.choices)

    def beginning(self, member: int) -> dict[str, float]:
        """What a member begins with: the same at every call."""
        random, given = self._random("begin", member), self.initial[member] if member < len(self.initial) else {}
        drawn = {name: self.space.draw(name, random) for name in self.space.names}
        return {name: float(value) for name, value in {**drawn, **given}.items()}

    def select(self, scores: Sequence[float | None], generation: int) -> list[tuple[int, int]]:
        """Who copies whom after a generation: the same at every call."""
        return truncation_selection(scores, self.mode, self.fraction, self._random("exploit", generation))

    def explore(self, values: Mapping[str, float], generation: int, member: int) -> dict[str, float]:
        """What a member tries after it has copied these values: the same at every call."""
        tried = self.space.explore(values, self._random("explore", generation, member))
        return {name: float(value) for name, value in tried.items()}

    def _random(self, *of_what: str | int) -> Random:
        """A generator of its own for every decision, so that there is no state to be kept for a resume."""
        return Random("/".join(map(str, (self.seed, *of_what))))

    def _check_initial(self) -> None:
        if len(self.initial) > self.population:
            raise ValueError(
                f"`{_CALL}(initial=...)` must be at most {self.population}, one for each member of `population`, got"
                f" {len(self.initial)}."
            )
        known = self.space.names
        for values in self.initial:
            if unknown := sorted(set(values) - set(known)):
                raise ValueError(
                    f"`{_CALL}(initial=...)` may name what is in `search` or `choices`, {', '.join(known)}; got"
                    f" {unknown[0]!r}."
                )
            for name, value in values.items():
                if not _is_number(value):
                    raise ValueError(f"`{_CALL}(initial=...)` must hold finite numbers, got {value!r} for {name!r}.")


def _check_range(name: str, values: Any) -> None:
    if (
        not isinstance(values, Sequence)
        or len(values) != 2
        or not all(map(_is_number, values))
        or not values[0] < values[1]
    ):
        raise ValueError(
            f"`{_CALL}(search=...)` must have for {name!r} the smallest and the largest value, got {values!r}."
            " Single values go into `choices`."
        )
    if name == "lr" and values[0] <= 0:
        raise ValueError(f"`{_CALL}(search=...)` must be above 0 for 'lr', got {values[0]!r}.")


def _check_choices(name: str, values: Any) -> None:
    if not isinstance(values, Sequence) or len(values) < 2 or not all(map(_is_number, values)):
        raise ValueError(f"`{_CALL}(choices=...)` must have for {name!r} at least two finite numbers, got {values!r}.")
    if name == "lr" and min(values) <= 0:
        raise ValueError(f"`{_CALL}(choices=...)` must be above 0 for 'lr', got {min(values)!r}.")


def _require_whole(name: str, value: Any, at_least: int, why: str = "") -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < at_least:
        raise ValueError(
            f"`{_CALL}({name}=...)` must be a whole number of at least {at_least}, got {value!r}. {why}".strip()
        )


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
