# SPDX-License-Identifier: Apache-2.0
"""Resume in the middle of an epoch as if nothing had happened.

A Lightning checkpoint holds no random state, and a plain `DataLoader` begins its epoch again. So the guard keeps

    now:       the random state at the checkpoint; in the middle of a batch, that before it was fetched
    epoch:     the random state before the epoch's iterator was made, and
    fetch:     before its first batch was fetched (they decide the order of the data)
    position:  how many batches of the epoch had been used
    has_begun: whether the epoch was under way, and under_way: whether a batch was
    replay:    where in the data those were from that were being replayed
    loaders:   the states of loaders without a length, which Lightning reads a batch ahead and saves a batch too late

and on resume makes the iterator from `epoch`, passes over `position` batches from `fetch`, sets those of `replay` aside
to be replayed, and goes on from `now`. At the beginning of an epoch there is no batch to pass over: the iterator is
made from `now`, when the first batch is asked for.
"""

from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_stable._lightning import data_fetcher, progress
from lightning_stable._lightning.ranks import of_all_ranks
from lightning_stable.guard.replays import Replay
from lightning_stable.snapshots.random_state import RandomState, random_of, state_of

_OF_EACH_RANK = ("now", "epoch", "fetch", "replay", "loaders")


class ExactResume:
    """Keeps and restores the place in the data and the random state.

    Data that draws on workers' own random state, or an `IterableDataset` that is not deterministic, is out of reach.
    Loaders with `state_dict` and `load_state_dict` are left to Lightning, but for a state that it saves too late.

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
        self._trainer: Trainer | None = None
        self._loaders: list[Any] = []  # what the last batch was fetched with, of loaders that are read ahead

    def setup(self, trainer: Trainer) -> None:
        """Be there when the first iterator is made."""
        self._trainer = trainer
        self._loaded = self._epoch = None
        self._loaders = []
        data_fetcher.before_first_iteration(trainer, lambda: self._before_first_iterator(trainer))

    def teardown(self, trainer: Trainer) -> None:
        """Leave the trainer as it was found."""
        self._trainer = None
        data_fetcher.forget_before_first_iteration(trainer)

    def attach(self, tap: data_fetcher.FetcherTap) -> None:
        """Be told of every iterator and of every batch."""
        tap.before_epoch, tap.before_new_batch = self._before_epoch, self._before_new_batch

    def end_epoch(self) -> None:
        """All batches of the epoch have been used."""
        self._epoch_over = True

    def go_to_place(self, trainer: Trainer) -> tuple[list[Any], Replay]:
        """Pass over what was used before the checkpoint, and go on from its random state.

        Returns the batches that were being replayed, and how their replay goes on.
        """
        if self._too_early:
            data_fetcher.make_loaders_again(trainer)
        data_fetcher.make_loaders_if_due(trainer)
        if self._loaded is None:
            return [], Replay()
        kept, replay = [], self._loaded["replay"]
        if self._loaded["position"] == 0:
            self._loaded["now"].restore()
            return [], Replay()  # the iterator comes with the first batch, behind what Lightning does before it
        if data_fetcher.loaders_resume_by_themselves(trainer) or data_fetcher.resumes_in_part(trainer):
            _warn_of_what_is_lost(trainer, replay)
            replay = Replay()
        else:
            kept = self._pass_over(trainer, self._loaded)
        if not self._loaded["under_way"] or kept:  # else when the batch is fetched again
            self._loaded["now"].restore()
            self._loaded = None
        return kept, replay

    def state_dict(
        self, trainer: Trainer | None, now: RandomState | None = None, replay: Replay | None = None
    ) -> dict[str, Any]:
        """The place in the data and the random state, as they are unless it is said what they shall be."""
        has_begun = trainer is not None and not self._epoch_over and not progress.is_epoch_used_up(trainer)
        under_way, position, replay = False, 0, replay or Replay()
        if trainer is not None and has_begun:
            under_way = not progress.is_between_batches(trainer)
            position = progress.batches_into_epoch(trainer) + replay.batches_ahead
        if has_begun and position == 0:
            now = self._epoch  # an epoch of which no batch has been used yet, as when its first one fails, begins anew
        return {
            "has_begun": has_begun,
            "under_way": under_way,
            "position": position,
            "replay": replay.state_dict(),
            "now": (now or RandomState()).state_dict(),
            "epoch": state_of(self._epoch),
            "fetch": state_of(self._fetch),
            "loaders": self._loaders if position else [],
        }

    def of_all_ranks(self, trainer: Trainer, own: dict[str, Any]) -> dict[str, Any]:
        """This rank's `state_dict`, with the random states of every rank; each of them must call this."""
        return {**own, "ranks": of_all_ranks(trainer, {name: own[name] for name in _OF_EACH_RANK})}

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
            state = {**state_dict, **ranks[rank % len(ranks)]}
        if state["epoch"] is None:
            return  # of a run that had not begun: a search for a learning rate or a batch size puts back what was there
        self._loaded = {
            **state,
            "replay": Replay.from_state_dict(state["replay"]),
            **{name: random_of(state[name]) for name in ("now", "epoch", "fetch")},
        }

    def _pass_over(self, trainer: Trainer, loaded: dict[str, Any]) -> list[Any]:
        """Fetch what was used before the checkpoint; returns what is to be replayed of it."""
        position, replay = loaded["position"], loaded["replay"]
        rank_zero_info(
            f"SpikeGuard: passing over {position} batches to the place of the checkpoint. What Lightning says of"
            " loaders that are not resumable does not hold for this run."
        )
        if loaded["fetch"] is not None:
            self._fetch = loaded["fetch"]
            loaded["fetch"].restore()
        counted = progress.batches_into_epoch(trainer)
        progress.epoch_goes_on(trainer)
        return data_fetcher.pass_over_batches(trainer, position, keep=set(replay.places), counted_later=counted)

    def _before_first_iterator(self, trainer: Trainer) -> None:
        # a `configure_optimizers` that asks for `estimated_stepping_batches` has the loaders made before the counters
        # of the checkpoint are back, and Lightning then never gives the loaders their state
        self._too_early = self._loaded is not None and not progress.has_begun(trainer)
        if self._loaded is not None:
            at = "epoch" if self._loaded["position"] else "now"
            self._loaded[at].restore()
            data_fetcher.load_states_of_loaders(trainer, self._loaded["loaders"])
            data_fetcher.set_sampler_epochs(trainer)
        self._begin_epoch()

    def _before_epoch(self) -> None:
        """An iterator over the training data is about to be made."""
        if self._loaded is not None:  # resumed between two epochs: Lightning had made an iterator too many
            self._loaded["now"].restore()
            self._loaded = None
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self._epoch, self._fetch = RandomState(), None
        self._epoch_over = False

    def _before_new_batch(self) -> None:
        assert self._trainer is not None
        if self._loaded is not None:
            loaded, self._loaded = self._loaded, None
            if loaded["has_begun"]:
                loaded["now"].restore()  # without what Lightning draws for a validation that is over
            if loaded["position"] == 0:  # the iterator is one that was made too early
                progress.begin_epoch(self._trainer)
                data_fetcher.begin_epoch_again(self._trainer)
        if self._fetch is None:
            self._fetch = RandomState()
        self._loaders = data_fetcher.states_of_loaders_that_read_ahead(self._trainer)


def _warn_of_what_is_lost(trainer: Trainer, replay: Replay) -> None:
    if data_fetcher.resumes_in_part(trainer):
        rank_zero_warn(
            "Some of the training loaders have `state_dict` and `load_state_dict`, and others have not: those begin"
            " their epoch anew, and the resumed run is not the one that was interrupted. Give all of them a state,"
            " or none."
        )
    elif replay.places:
        rank_zero_warn(
            "SpikeGuard: the checkpoint was written while batches were being replayed. Those that were left are"
            " lost, as a loader with a `state_dict` goes on where it was."
        )
