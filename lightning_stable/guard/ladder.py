# SPDX-License-Identifier: Apache-2.0
"""Which response answers next: the mildest one that still has budget; and how hard a rollback strikes."""

from collections.abc import Callable, Sequence
from typing import Any

from lightning_stable.guard.responses import Halt, Response


class Ladder:
    """Climbs from rung to rung as incidents follow one another; `forgive_after` clean steps bring it back down.

    Side responses have budgets too, but act beside the rung that answers.

    Args:
        rungs: The responses, mildest first. After the last one's budget the run is halted.
        forgive_after: Clean optimizer steps in a row, replayed ones not counted, after which budgets are full again;
            `None` never forgives.
        cooldown: Clean optimizer steps after a rollback, its replay not counted, within which a spike is answered by
            the rungs behind the one that went back.

    Raises:
        TypeError: If a rung is not a `Response`.
        ValueError: If there is no rung that answers, one follows `Halt`, `forgive_after` is below 1, or `cooldown`
            below 0.

    Example:
        >>> from lightning_stable.guard.responses import SkipStep
        >>> ladder = Ladder([SkipStep(times=2), Halt()], forgive_after=10)
        >>> [type(ladder.climb()).__name__ for _ in range(3)]
        ['SkipStep', 'SkipStep', 'Halt']
    """

    def __init__(self, rungs: Sequence[Response], forgive_after: int | None, cooldown: int = 0) -> None:
        if not rungs:
            raise ValueError(
                "`SpikeGuard(ladder=...)` must hold at least one response, got an empty list."
                " `ladder=[Halt()]` stops at the first spike."
            )
        for rung in rungs:
            if not isinstance(rung, Response):
                raise TypeError(f"`SpikeGuard(ladder=...)` must hold responses such as `SkipStep()`, got {rung!r}.")
        if all(rung.is_side for rung in rungs):
            raise ValueError(
                "`SpikeGuard(ladder=...)` must hold a response that answers, besides those that save or notify, such as"
                " `SkipStep()`."
            )
        if any(rung.halts for rung in rungs[:-1]):
            raise ValueError("`SpikeGuard(ladder=...)`: `Halt()` must be the last response, nothing can follow it.")
        if forgive_after is not None and forgive_after < 1:
            raise ValueError(f"`SpikeGuard(forgive_after=...)` must be at least 1 or None, got {forgive_after}.")
        if cooldown < 0:
            raise ValueError(f"`SpikeGuard(cooldown=...)` must be at least 0, got {cooldown}.")
        self.rungs = list(rungs)
        self.forgive_after = forgive_after
        self.cooldown = cooldown
        self.escalation = Escalation()
        self._used = [0] * len(self.rungs)
        self._clean_steps = 0
        self._cooling = 0  # steps left
        self._cooling_rungs = 0  # as many are passed over meanwhile

    def climb(self, applies: Callable[[Response], bool] = lambda rung: True) -> Response:
        """The response to an incident; a rung to which `applies` says no is passed over and keeps its budget."""
        self._clean_steps = 0
        first = self._cooling_rungs if self._cooling else 0
        for index, rung in enumerate(self.rungs):
            if index < first or rung.is_side or self._used[index] >= rung.times or not applies(rung):
                continue
            self._used[index] += 1
            if rung.back:
                self._cooling, self._cooling_rungs = self.cooldown, index + 1
            return rung
        return Halt()

    def side_responses(self) -> list[Response]:
        """Those that act beside the response to an incident, and have budget left."""
        found = [index for index, rung in enumerate(self.rungs) if rung.is_side and self._used[index] < rung.times]
        for index in found:
            self._used[index] += 1
        return [self.rungs[index] for index in found]

    def clean_step(self, is_replayed: bool = False) -> None:
        """Count a step without an incident."""
        self.escalation.clean_step()
        if is_replayed:  # it was clean the first time, and says nothing new
            return
        self._clean_steps += 1
        self._cooling = max(0, self._cooling - 1)
        if self._clean_steps == self.forgive_after:
            self._used = [0] * len(self.rungs)

    def state_dict(self) -> dict[str, Any]:
        """What was used up, and how far the last rollback still reaches."""
        return {
            "used": list(self._used),
            "clean_steps": self._clean_steps,
            "cooling": self._cooling,
            "cooling_rungs": self._cooling_rungs,
            "escalation": self.escalation.state_dict(),
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`; a ladder with another number of rungs starts afresh."""
        if len(state_dict["used"]) == len(self.rungs):
            self._used = list(state_dict["used"])
            self._clean_steps = state_dict["clean_steps"]
            self._cooling = state_dict["cooling"]
            self._cooling_rungs = state_dict["cooling_rungs"]
            self.escalation.load_state_dict(state_dict["escalation"])


class Escalation:
    """Counts the rollbacks in a row that have not helped at one place; `Rollback` says what a place is.

    Example:
        >>> escalation = Escalation()
        >>> escalation.rolled_back(windows=3, replayed=0)
        >>> escalation.clean_step()
        >>> escalation.repeats
        1
        >>> escalation.clean_step()
        >>> escalation.clean_step()
        >>> escalation.repeats
        0
    """

    def __init__(self) -> None:
        self._rollbacks = 0
        self._windows_left = 0

    @property
    def repeats(self) -> int:
        """How many rollbacks have not helped, if a spike came now."""
        return self._rollbacks if self._windows_left else 0

    def rolled_back(self, windows: int, replayed: int) -> None:
        """Watch the `replayed` windows of a rollback over `windows`, and as many after them as it went back."""
        self._rollbacks = self.repeats + 1
        self._windows_left = windows + replayed

    def clean_step(self) -> None:
        """One window further from the place."""
        self._windows_left = max(0, self._windows_left - 1)

    def state_dict(self) -> dict[str, Any]:
        """How often it has fired, and how far the place still reaches."""
        return {"rollbacks": self._rollbacks, "windows_left": self._windows_left}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`."""
        self._rollbacks = state_dict["rollbacks"]
        self._windows_left = state_dict["windows_left"]
