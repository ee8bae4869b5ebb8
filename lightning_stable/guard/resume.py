# SPDX-License-Identifier: Apache-2.0
"""Resume in the middle of an epoch as if nothing had happened.

A Lightning checkpoint holds no random state, and a plain `DataLoader` begins its epoch again. So the guard keeps

    now:       the random state at the checkpoint; in the middle of a batch, that before it was fetched, or of the
               epoch's first one, after it
    epoch:     the random state before the epoch's iterator was made, and
    fetch:     before its first batch was fetched (they decide the order of the data)
    position:  how many batches of the epoch had been used
    mid_epoch: whether the next batch is of the same epoch; under_way: whether it had been begun
    replay:    where in the data those were from that were being replayed

and on resume makes the iterator from `epoch`, passes over `position` batches from `fetch`, sets those of `replay` aside
to be replayed, and goes on from `now`.
"""

from dataclasses import dataclass, field
from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_stable._lightning import data_fetcher, progress
from lightning_stable.guard.random_state import RandomState

_OF_EACH_RANK = ("now", "epoch", "fetch", "replay")


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

    places: list[data_fetcher.Place] = field(default_factory=list)
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
            "random": [_state_of(random) for random in self.random],
            "random_after": _state_of(self.random_after),
            "shortfall": self.shortfall,
        }

    @classmethod
    def from_state_dict(cls, state_dict: dict[str, Any]) -> "Replay":
        """What `state_dict` was taken from."""
        random = [_random_of(state) for state in state_dict["random"]]
        return cls(state_dict["places"], random, _random_of(state_dict["random_after"]), state_dict["shortfall"])


class ExactResume:
    """Keeps and restores the place in the data and the random state.

    Data that draws on workers' own random state, or an `IterableDataset` that is not deterministic, is out of reach.
    Loaders with `state_dict` and `load_state_dict` are left to Lightning.

    Example:
        >>> ExactResume().state_dict(trainer=None)["position"]
        0
    """

    def __init__(self) -> None:
        self._epoch: RandomState | None = None
        self._fetch: RandomState | None = None
        self._loaded: dict[str, Any] | None = None
        self._epoch_over = True
        self._too_early = False

    def setup(self, trainer: Trainer) -> None:
        """Be there when the first iterator is made."""
        data_fetcher.before_first_iteration(trainer, lambda: self._before_first_iterator(trainer))

    def teardown(self, trainer: Trainer) -> None:
        """Leave the trainer as it was found."""
        data_fetcher.forget_before_first_iteration(trainer)

    def before_epoch(self) -> None:
        """An iterator over the training data is about to be made."""
        if self._loaded is not None:  # resumed between two epochs: Lightning had made an iterator too many
            self._loaded["now"].restore()
            self._loaded = None
        self._epoch, self._fetch = RandomState(), None
        self._epoch_over = False

    def before_first_fetch(self) -> None:
        """The first batch of an epoch, or after a resume, is about to be fetched."""
        if self._loaded is not None and self._loaded["under_way"]:
            self._loaded["now" if self._loaded["position"] else "fetch"].restore()
        if self._fetch is None:
            self._fetch = RandomState()

    def after_fetch(self) -> None:
        """A batch has been fetched: whatever was to be resumed has been."""
        if self._loaded is not None and self._loaded["under_way"] and not self._loaded["position"]:
            self._loaded["now"].restore()
        self._loaded = None

    def end_epoch(self) -> None:
        """All batches of the epoch have been used."""
        self._epoch_over = True

    def go_to_place(self, trainer: Trainer) -> tuple[list[Any], Replay]:
        """Pass over what was used before the checkpoint, and go on from its random state.

        Returns the batches that were being replayed, and how their replay goes on.
        """
        if self._too_early:
            data_fetcher.make_loaders_again(trainer)
        if self._loaded is None or not self._loaded["mid_epoch"]:
            return [], Replay()
        position, replay = self._loaded["position"], self._loaded["replay"]
        kept = []
        progress.epoch_goes_on(trainer)
        if data_fetcher.loaders_resume_by_themselves(trainer):
            if replay.places:
                replay = Replay()
                rank_zero_warn(
                    "SpikeGuard: the checkpoint was written while batches were being replayed. Those that were left are"
                    " lost, as a loader with a `state_dict` goes on where it was."
                )
        else:
            rank_zero_info(
                f"SpikeGuard: passing over {position} batches to the place of the checkpoint. What Lightning says of"
                " loaders that are not resumable does not hold for this run."
            )
            counted = progress.batches_into_epoch(trainer)
            fetch = self._loaded["fetch"]
            if position and fetch is not None:
                fetch.restore()
                self._fetch = fetch
            kept = data_fetcher.pass_over_batches(trainer, position, keep=set(replay.places), counted_later=counted)
        if not self._loaded["under_way"]:
            self._loaded["now"].restore()
            self._loaded = None
        return kept, replay

    def state_dict(
        self, trainer: Trainer | None, now: RandomState | None = None, replay: Replay | None = None
    ) -> dict[str, Any]:
        """The place in the data and the random state, as they are unless it is said what they shall be."""
        mid_epoch, under_way, position, replay = False, False, 0, replay or Replay()
        if trainer is not None and not self._epoch_over:
            under_way = not progress.is_between_batches(trainer)
            mid_epoch = under_way or not progress.is_last_batch(trainer)
            position = progress.batches_into_epoch(trainer) + replay.batches_ahead if mid_epoch else 0
        return {
            "mid_epoch": mid_epoch,
            "under_way": under_way,
            "position": position,
            "replay": replay.state_dict(),
            "now": (now or RandomState()).state_dict(),
            "epoch": _state_of(self._epoch),
            "fetch": _state_of(self._fetch),
        }

    def of_all_ranks(self, trainer: Trainer, own: dict[str, Any]) -> dict[str, Any]:
        """This rank's `state_dict`, with the random states of every rank; each of them must call this."""
        states: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(states, {name: own[name] for name in _OF_EACH_RANK})
        return {**own, "ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any], trainer: Trainer | None) -> None:
        """Take up `state_dict` when the data is there; of several ranks' states, that of this rank."""
        state = state_dict
        if "ranks" in state_dict:
            ranks, rank = state_dict["ranks"], 0 if trainer is None else trainer.global_rank
            if trainer is not None and trainer.world_size != len(ranks):
                rank_zero_warn(
                    f"This checkpoint is of a run on {len(ranks)} ranks, and the Trainer has {trainer.world_size}:"
                    " random numbers and data will not be those of a run that was not interrupted."
                )
            state = ranks[rank % len(ranks)]
        self._loaded = {
            "mid_epoch": state_dict["mid_epoch"],
            "under_way": state_dict["under_way"],
            "position": state_dict["position"],
            "replay": Replay.from_state_dict(state["replay"]),
            "now": _random_of(state["now"]),
            "epoch": _random_of(state["epoch"]),
            "fetch": _random_of(state["fetch"]),
        }

    def _before_first_iterator(self, trainer: Trainer) -> None:
        # a `configure_optimizers` that asks for `estimated_stepping_batches` has the loaders made before the counters
        # of the checkpoint are back, and Lightning then never gives the loaders their state
        self._too_early = self._loaded is not None and not progress.has_begun(trainer)
        if self._loaded is not None:
            at = "epoch" if self._loaded["mid_epoch"] else "now"
            if self._loaded[at] is not None:
                self._loaded[at].restore()
            data_fetcher.set_sampler_epochs(trainer)
        self._epoch, self._fetch = RandomState(), None
        self._epoch_over = False


def _state_of(random: RandomState | None) -> dict[str, Any] | None:
    return None if random is None else random.state_dict()


def _random_of(state: dict[str, Any] | None) -> RandomState | None:
    return None if state is None else RandomState.from_state_dict(state)
