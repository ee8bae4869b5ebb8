# SPDX-License-Identifier: Apache-2.0
"""Which response answers next: the mildest one that still has budget."""

from collections.abc import Sequence
from typing import Any

from lightning_stable.guard.responses import Halt, Response


class Ladder:
    """Climbs from rung to rung as incidents follow one another; `forgive_after` clean steps bring it back down.

    Args:
        rungs: The responses, mildest first. After the last one's budget the run is halted.
        forgive_after: Clean optimizer steps in a row after which all budgets are full again; `None` never forgives.

    Raises:
        TypeError: If a rung is not a `Response`.
        ValueError: If there is no rung, one follows `Halt`, or `forgive_after` is below 1.

    Example:
        >>> from lightning_stable.guard.responses import SkipStep
        >>> ladder = Ladder([SkipStep(times=2), Halt()], forgive_after=10)
        >>> [type(ladder.climb()).__name__ for _ in range(3)]
        ['SkipStep', 'SkipStep', 'Halt']
    """

    def __init__(self, rungs: Sequence[Response], forgive_after: int | None) -> None:
        if not rungs:
            raise ValueError(
                "`SpikeGuard(ladder=...)` must hold at least one response, got an empty list."
                " `ladder=[Halt()]` stops at the first spike."
            )
        for rung in rungs:
            if not isinstance(rung, Response):
                raise TypeError(f"`SpikeGuard(ladder=...)` must hold responses such as `SkipStep()`, got {rung!r}.")
        if any(rung.halts for rung in rungs[:-1]):
            raise ValueError("`SpikeGuard(ladder=...)`: `Halt()` must be the last response, nothing can follow it.")
        if forgive_after is not None and forgive_after < 1:
            raise ValueError(f"`SpikeGuard(forgive_after=...)` must be at least 1 or None, got {forgive_after}.")
        self.rungs = list(rungs)
        self.forgive_after = forgive_after
        self._used = [0] * len(self.rungs)
        self._clean_steps = 0

    def climb(self) -> Response:
        """The response to an incident."""
        self._clean_steps = 0
        for index, rung in enumerate(self.rungs):
            if self._used[index] < rung.times:
                self._used[index] += 1
                return rung
        return Halt()

    def clean_step(self) -> None:
        """Count a step without an incident."""
        self._clean_steps += 1
        if self._clean_steps == self.forgive_after:
            self._used = [0] * len(self.rungs)

    def state_dict(self) -> dict[str, Any]:
        """What was used up."""
        return {"used": list(self._used), "clean_steps": self._clean_steps}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`; a ladder with another number of rungs starts afresh."""
        if len(state_dict["used"]) == len(self.rungs):
            self._used = list(state_dict["used"])
            self._clean_steps = state_dict["clean_steps"]
