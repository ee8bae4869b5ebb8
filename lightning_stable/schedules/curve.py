# SPDX-License-Identifier: Apache-2.0
"""The whole curve of a schedule: warmup, profile, and how often the profile is looked at."""

import math
from collections.abc import Sequence
from typing import Any

from lightning_stable.schedules.arguments import is_number, require_one_of, require_positive, require_within
from lightning_stable.schedules.profile import Profile, as_profile, reached
from lightning_stable.schedules.rex import REX
from lightning_stable.schedules.step import require_rising_fractions
from lightning_stable.schedules.warmup import CURVES, UNTUNED, untuned_factor, warmup_factor

UNITS = ("steps", "epochs", "samples", "tokens", "seconds")


class Curve:
    """A factor on the base rate as a function of the place in the run; `ProfileLR` has the equation and the arguments.

    Raises:
        ValueError: If an argument is out of its bounds.

    Example:
        >>> curve = Curve("Linear", warmup_steps=2)
        >>> [curve.factor(position, 1, total=6) for position in range(7)]
        [0.5, 1.0, 1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def __init__(
        self,
        profile: Profile | str | dict[str, Any] | None = None,
        warmup_steps: float = 0,
        warmup: str = "linear",
        warmup_start: float | None = None,
        min_ratio: float = 0.0,
        sample_every: float | None = None,
        sample_at: Sequence[float] | None = None,
        unit: str = "steps",
    ) -> None:
        self.profile = REX() if profile is None else as_profile(profile)
        self.warmup_steps = _at_least_zero("warmup_steps", warmup_steps)
        self.warmup = require_one_of("ProfileLR", "warmup", warmup, CURVES + UNTUNED)
        self.warmup_start = None if warmup_start is None else _start(warmup_start, warmup)
        self.min_ratio = require_within("ProfileLR", "min_ratio", min_ratio, "[0, 1]")
        self.sample_every = (
            None if sample_every is None else require_positive("ProfileLR", "sample_every", sample_every)
        )
        self.sample_at = None if sample_at is None else require_rising_fractions("ProfileLR", "sample_at", sample_at)
        self.unit = require_one_of("ProfileLR", "unit", unit, UNITS)
        self._check_warmup()
        self._check_together()

    def __repr__(self) -> str:
        said = ", ".join(f"{name}={value!r}" for name, value in vars(self).items() if name != "profile")
        return f"ProfileLR({self.profile!r}, {said})"

    @property
    def is_untuned(self) -> bool:
        """Whether the warmup has its length from beta2."""
        return self.warmup in UNTUNED

    @property
    def needs_length(self) -> bool:
        """Whether the profile means nothing in a run without end."""
        return self.profile.needs_length or self.sample_at is not None

    def factor(self, position: float, increment: float, total: float | None, beta2: float = 0.999) -> float:
        """The factor of a step that begins at `position` and uses `increment`.

        Args:
            position: What has been used of the budget.
            increment: What the step uses.
            total: The budget; `None` while unknown.
            beta2: Of the group's second moment, for untuned warmups.
        """
        profile = self.profile.factor(*self._sample(position, total))
        return self._warmup(position + increment, beta2) * (self.min_ratio + (1.0 - self.min_ratio) * profile)

    def momentum(self, position: float, total: float | None) -> float | None:
        """The momentum of a step that begins at `position`; `None` leaves it to the optimizer."""
        return self.profile.momentum(*self._sample(position, total))

    def warmup_length(self, beta2s: Sequence[float]) -> float:
        """How long the warmup is in the curve's unit; with the untuned rules, until it is all but over."""
        return max(2.0 / (1.0 - beta2) for beta2 in beta2s) if self.is_untuned else self.warmup_steps

    def _warmup(self, end: float, beta2: float) -> float:
        """The warmup's factor on a step that ends there."""
        if self.is_untuned:
            return untuned_factor(end, beta2, self.warmup)
        if end < self.warmup_steps:
            return warmup_factor(end / self.warmup_steps, self.warmup, self.warmup_start)
        return 1.0

    def _sample(self, position: float, total: float | None) -> tuple[float, float]:
        """The latest place at which the profile is looked at, and its length, both counted from the warmup's end."""
        length = math.inf if total is None else max(total - self.warmup_steps, 0)
        if position < self.warmup_steps:
            return 0.0, length or math.inf  # its start, which is not its end either where nothing is left for it
        done = position - self.warmup_steps
        if self.sample_at is not None:
            done = 0.0 if total is None else max([x * length for x in self.sample_at if reached(done, length, x)] + [0])
        elif self.sample_every is not None:
            done = math.floor(done / self.sample_every * (1.0 + 1e-12)) * self.sample_every
        return done, length

    def _check_warmup(self) -> None:
        if self.unit == "steps" and 0 < self.warmup_steps < 1:
            raise ValueError(
                f"`ProfileLR(warmup_steps=...)` must be 0, or at least 1 where steps are counted, got "
                f"{self.warmup_steps!r}. It is no fraction of the run: for a tenth of 1,000 steps set 100."
            )

    def _check_together(self) -> None:
        if self.sample_every is not None and self.sample_at is not None:
            raise ValueError("`ProfileLR(sample_at=...)` and `sample_every` exclude each other; pass one of them.")
        if self.is_untuned and (self.warmup_steps or self.warmup_start is not None or self.unit != "steps"):
            raise ValueError(
                f'`ProfileLR(warmup="{self.warmup}")` counts steps and has its length from beta2: leave '
                "`warmup_steps`, `warmup_start` and `unit` as they are."
            )


def _at_least_zero(name: str, value: float) -> float:
    if not is_number(value) or value < 0:
        raise ValueError(f"`ProfileLR({name}=...)` must be a number of at least 0, got {value!r}.")
    return float(value)


def _start(warmup_start: float, warmup: str) -> float:
    bounds = "(0, 1)" if warmup == "exponential" else "[0, 1)"
    return require_within("ProfileLR", "warmup_start", warmup_start, bounds)
