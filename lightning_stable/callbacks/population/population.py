# SPDX-License-Identifier: Apache-2.0
"""One turn after another: who trains, how well it did, who takes over from whom."""

from dataclasses import asdict, dataclass, replace
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_stable._lightning.loggers import log_scalars
from lightning_stable.callbacks.population.exploit_explore import is_finite, ranking
from lightning_stable.callbacks.population.hyperparameters import Hyperparameters
from lightning_stable.callbacks.population.lineage import Copy, Lineage, Turn
from lightning_stable.callbacks.population.members import Members
from lightning_stable.callbacks.population.settings import Settings
from lightning_stable.callbacks.population.turn_score import TurnScore


@dataclass(frozen=True)
class Standing:
    """What is known of a member beside its snapshot.

    Args:
        hyperparameters: What it trains with.
        steps: Optimizer steps on the line of its weights.
        score: What it came to last; `None` before its first turn has ended.

    Example:
        >>> Standing({"lr": 0.1}).steps
        0
    """

    hyperparameters: dict[str, float]
    steps: int = 0
    score: float | None = None


class Population:
    """Trains the members in turn, in one running `fit`.

    A member may only be exchanged where no batch is under way and nothing is accumulated, and only after whoever saves
    checkpoints or steps schedules by what was just validated has done so: that is when the next batch begins.

    Args:
        trainer: The trainer in its `fit`.
        pl_module: The module it trains.
        settings: What the user has set.
        members: The snapshots.
        hyperparameters: Reads and sets what is searched.

    Example:
        >>> Population.__name__  # needs a running fit; see `PopulationBasedTraining`
        'Population'
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        settings: Settings,
        members: Members,
        hyperparameters: Hyperparameters,
    ) -> None:
        self._trainer = trainer
        self._settings = settings
        self._members = members
        self._hyperparameters = hyperparameters
        self._lineage = Lineage()
        self._current = 0  # who is in the trainer, or would be if the run went on
        self._generation = 0
        self._best_is_in = False  # the run has ended, and the best member is in the trainer
        self._has_begun = False
        self.turn = TurnScore(trainer, settings.monitor, settings.interval)
        self.standings = [Standing(settings.beginning(member)) for member in range(settings.population)]

    # The beginning, and the end

    def go_on(self, state: dict[str, Any]) -> None:
        """Take up what a checkpoint holds; the trainer holds what it has loaded itself.

        Raises:
            ValueError: If it is of another population; or another error if it is damaged.
        """
        standings = [Standing(**standing) for standing in state["standings"]]
        if len(standings) != self._settings.population:
            raise ValueError(f"it has {len(standings)} members, and `population` is {self._settings.population}")
        if any(list(standing.hyperparameters) != self._settings.space.names for standing in standings):
            raise ValueError(f"it searches {', '.join(standings[0].hyperparameters)}")
        if state["current"] not in range(len(standings)):
            raise ValueError(f"it has no member {state['current']}")
        self._members.load_state_dict(state["members"])
        self.turn.load_state_dict(state["turn"])
        self.standings, self._lineage = standings, Lineage.from_json(state["lineage"])
        self._current, self._generation = state["current"], state["generation"]
        self._put_in(self._current, is_in=not state["best_is_in"])
        self._has_begun = True

    def end(self) -> int | None:
        """Put the best member into the trainer, and return its number; the others stay as they are for a resume."""
        if not self._has_begun:
            return None
        if self.turn.score is not None:
            self._stand(self._current, score=self.turn.score)
        best = self.best
        self._members.keep(self._current)
        self._best_is_in = True
        if best is not None:
            self._put_in(best, is_in=best == self._current)
        return best

    @property
    def best(self) -> int | None:
        """The member with the best score, if anybody has a finite one."""
        scores = [standing.score for standing in self.standings]
        best = ranking(scores, self._settings.mode)[0]
        return best if is_finite(scores[best]) else None

    @property
    def lineage(self) -> Lineage:
        """What has been so far, the turn that is under way included."""
        turns = [self._described(self.turn.score)] if self.turn.steps else []
        return Lineage([*self._lineage.turns, *turns], list(self._lineage.copies))

    # One step

    def begin_batch(self) -> bool:
        """The next member's turn, if that of the last one is over; returns whether a generation is over by that."""
        if not self._has_begun:
            self._begin()  # only now are the other callbacks as they train
        if not self.turn.is_over or self.turn.score is None:
            return False
        score, member = self.turn.score, self._current
        described = self._described(score)
        self._lineage.turns.append(described)
        self._stand(member, score=score, steps=described.end)
        self._log(member)
        self._members.keep(member)
        self._current = (member + 1) % len(self.standings)
        if self._current == 0:
            self._exploit_and_explore()
            self._generation += 1
        self._put_in(self._current)
        self.turn.begin()
        return self._current == 0

    def state_dict(self) -> dict[str, Any]:
        """A copy of all that a resumed run needs beside what Lightning saves; nothing before the first batch."""
        if not self._has_begun:
            return {}
        return {
            "standings": [asdict(standing) for standing in self.standings],
            "current": self._current,
            "generation": self._generation,
            "best_is_in": self._best_is_in,
            "turn": self.turn.state_dict(),
            "lineage": self._lineage.to_json(),
            "members": self._members.state_dict(without=None if self._best_is_in else self._current),
        }

    # What they are made of

    def _begin(self) -> None:
        """All members begin from the weights there are, each with hyper-parameters of its own."""
        self._members.keep(0)
        for member in (*range(1, len(self.standings)), 0):
            self._members.put_in(0)
            self._hyperparameters.write(self.standings[member].hyperparameters)
            self._members.keep(member)
        self._has_begun = True
        self.turn.begin()

    def _put_in(self, member: int, is_in: bool = False) -> None:
        """Let `member` train; attributes of modules are in no snapshot, so they are set in any case."""
        if not is_in:
            self._members.put_in(member)
        self._hyperparameters.write(self.standings[member].hyperparameters)

    def _stand(self, member: int, **changes: Any) -> None:
        self.standings[member] = replace(self.standings[member], **changes)

    def _described(self, score: float | None) -> Turn:
        standing, steps = self.standings[self._current], self.turn.steps
        return Turn(
            generation=self._generation,
            member=self._current,
            begin=standing.steps,
            end=standing.steps + steps,
            global_step=self._trainer.global_step,
            hyperparameters=dict(standing.hyperparameters),
            score=score if is_finite(score) else None,
        )

    def _log(self, member: int) -> None:
        standing = self.standings[member]
        values = {"score": standing.score, **standing.hyperparameters}
        log_scalars(
            self._trainer,
            {f"stability/pbt/{name}/{member}": value for name, value in values.items() if value is not None},
        )

    def _exploit_and_explore(self) -> None:
        scores = [standing.score for standing in self.standings]
        for member, parent in self._settings.select(scores, self._generation):
            tried = self._settings.explore(self.standings[parent].hyperparameters, self._generation, member)
            self._lineage.copies.append(Copy(self._generation, member, parent, dict(tried)))
            self._members.put_in(parent)
            self._hyperparameters.write(tried)
            self._members.keep(member)
            self.standings[member] = replace(self.standings[parent], hyperparameters=tried)
