# SPDX-License-Identifier: Apache-2.0
"""Drops at fractions of the run."""

from collections.abc import Sequence

from lightning_stable.schedules.arguments import is_number, require_within
from lightning_stable.schedules.profile import Profile, reached


class Step(Profile):
    """Drops the learning rate at given fractions of the run.

        factor = drop ^ (how many milestones are reached)

    Paper: none; the custom for residual networks, He et al. (2016): by ten at half and at three quarters of the run.

    Deviations: torch's `MultiStepLR` has its milestones in steps.

    Args:
        milestones: Fractions of the run after the warmup, rising, each in (0, 1).
        drop: What the rate is multiplied by at each, in (0, 1).

    Raises:
        ValueError: If an argument is out of its bounds.

    Example:
        >>> [round(Step().factor(done, 4), 3) for done in range(5)]
        [1.0, 1.0, 0.1, 0.01, 0.01]
    """

    def __init__(self, milestones: Sequence[float] = (0.5, 0.75), drop: float = 0.1) -> None:
        self.milestones = require_rising_fractions("Step", "milestones", milestones)
        self.drop = require_within("Step", "drop", drop, "(0, 1)")

    def factor(self, done: float, length: float) -> float:
        """The factor at `done` of `length`."""
        return self.drop ** sum(reached(done, length, milestone) for milestone in self.milestones)


def require_rising_fractions(call: str, name: str, fractions: Sequence[float]) -> tuple[float, ...]:
    """Return `fractions`, which must rise and lie in (0, 1).

    Raises:
        ValueError: If they do not.

    Example:
        >>> require_rising_fractions("Step", "milestones", [0.5, 0.75])
        (0.5, 0.75)
    """
    values = tuple(fractions) if isinstance(fractions, Sequence) and not isinstance(fractions, str) else ()
    inside = all(is_number(value) and 0.0 < value < 1.0 for value in values)
    if not values or not inside or list(values) != sorted(set(values)):
        raise ValueError(
            f"`{call}({name}=...)` must be fractions of the run that rise and lie in (0, 1), such as [0.5, 0.75], "
            f"got {fractions!r}."
        )
    return tuple(map(float, values))
