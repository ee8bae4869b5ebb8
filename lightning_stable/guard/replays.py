# SPDX-License-Identifier: Apache-2.0
"""Batches that are trained on once more: in which order, how numbered, and from which random states."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning.pytorch import Trainer

from lightning_stable._lightning import checkpoints, progress
from lightning_stable._lightning.data_fetcher import FetcherTap, Kept, Place, place_of
from lightning_stable.snapshots.random_state import RandomState, random_of, state_of


@dataclass(frozen=True)
class Replay:
    """Batches that are still to be replayed.

    Args:
        places: Where in the data they are from.
        random: The random state each of them is replayed with; `None` goes on with what there is.
        random_after: The random state after all of them.
        shortfall: By how much the loop's count will be too low after them.

    Example:
        >>> Replay([(4, 0), (5, 0)], [None, None]).batches_ahead
        2
    """

    places: list[Place] = field(default_factory=list)
    random: list[RandomState | None] = field(default_factory=list)
    random_after: RandomState | None = None
    shortfall: int = 0

    @property
    def batches_ahead(self) -> int:
        """How much further the loader is than the loop has counted."""
        return len(self.places) + self.shortfall

    def state_dict(self) -> dict[str, Any]:
        """All of it, in types that load with `weights_only=True`."""
        return {
            "places": self.places,
            "random": [state_of(random) for random in self.random],
            "random_after": state_of(self.random_after),
            "shortfall": self.shortfall,
        }

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Any]) -> "Replay":
        """What `state_dict` was taken from."""
        random = [random_of(state) for state in state_dict["random"]]
        places = [tuple(place) for place in state_dict["places"]]
        if len(places) != len(random):
            raise ValueError(f"a replay of {len(places)} batches must have as many random states, got {len(random)}")
        return cls(places, random, random_of(state_dict["random_after"]), state_dict["shortfall"])


class Replays:
    """Hands the good batches since a snapshot out again.

    They are numbered again, up to the index of the batch that was left out, and have the random state that each of them
    was trained with, as fetching and validating may draw numbers, too. Of what is replayed nothing is validated or
    saved a second time but the last step, which stands where the data goes on.

    Args:
        trainer: The trainer in its `fit`.
        tap: Hands out the batches.

    Example:
        >>> Replays.__name__  # needs a running fit; see `SpikeGuard`
        'Replays'
    """

    def __init__(self, trainer: Trainer, tap: FetcherTap) -> None:
        self._trainer = trainer
        self._tap = tap
        self.is_on = False  # whether the batch that is under way is a replayed one
        self._of_window: list[Kept] = []
        self._shortfall = 0
        self._random_after: RandomState | None = None
        self._marked: list[int] | None = None

    @property
    def left(self) -> int:
        """How many batches are still to be replayed."""
        return self._tap.replays_left

    def begin(self, batches: Sequence[Kept], random_after: RandomState) -> None:
        """Replay `batches` before whatever is still to be replayed; then go on from `random_after`."""
        rest = self._tap.take_replays()
        # an epoch's last window may be shorter; without it those before must still be cut where they were
        beyond = progress.batches_beyond_a_window(self._trainer, len(batches))
        progress.rewind_batches(self._trainer, len(batches) + beyond)
        self._shortfall += beyond
        progress.skip_next_validation(self._trainer)
        self._tap.replay([*batches, *rest])
        self._random_after = None if rest else random_after

    def before_batch(self, kept: Kept | None, begins_window: bool) -> None:
        """A batch is about to be handed out, a replayed one or a new one."""
        self.is_on = kept is not None
        if begins_window:
            self._of_window = []
        if kept is not None:
            self._of_window.append(kept)
            if kept.along is not None:  # a run without the batch that was left out has fetched and validated meanwhile
                kept.along.restore()

    def keep_from_saving(self, comes_again: bool) -> None:
        """Let `ModelCheckpoint` save nothing at the end of this batch.

        Args:
            comes_again: Whether steps that lie ahead once more will be what they were, and need not be saved again.
        """
        marked = checkpoints.mark_saved(self._trainer)
        if self._marked is None:
            self._marked = marked
        if not comes_again:
            self._marked = [min(step, self._trainer.global_step) for step in self._marked]

    def after_batch(self) -> None:
        """A replayed step was saved and validated before; only the last one stands where the data goes on."""
        if not self.is_on:
            return
        self.keep_from_saving(comes_again=True)
        if self.left:
            progress.skip_next_validation(self._trainer)
            return
        progress.end_epoch_at(self._trainer, self._shortfall)
        self._shortfall = 0
        if self._random_after is not None:
            self._random_after.restore()
            self._random_after = None

    def before_validation_or_batch(self) -> None:
        """Let `ModelCheckpoint` see again what it has really saved."""
        if self._marked is not None:
            checkpoints.unmark_saved(self._trainer, self._marked)
            self._marked = None

    def forget_random_states(self) -> None:
        """What is still to be replayed had drawn its numbers after a window that is left out, and must draw others."""
        self._tap.replay(kept._replace(along=None) for kept in self._tap.take_replays())
        self._random_after = None

    def put_back_window(self) -> None:
        """The window that runs has not begun."""
        self._tap.replay([*self._of_window, *self._tap.take_replays()])

    # The checkpoint

    def unfinished(self) -> Replay:
        """What a run that is resumed here has still to replay, the batch that is under way included."""
        is_under_way = not progress.is_between_batches(self._trainer)
        batches = [*(self._of_window[-1:] if is_under_way else []), *self._tap.to_replay]
        places = [place_of(kept.batch) for kept in batches]
        return Replay(places, [kept.along for kept in batches], self._random_after, self._shortfall)

    def resume(self, batches: Sequence[Any], replay: Replay) -> None:
        """Go on with the `replay` that a checkpoint was written in; `batches` are those at its places."""
        self._tap.replay(Kept(*one) for one in zip(batches, replay.random, strict=True))
        self._random_after, self._shortfall = replay.random_after, replay.shortfall
