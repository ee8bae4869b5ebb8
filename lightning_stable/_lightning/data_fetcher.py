# SPDX-License-Identifier: Apache-2.0
"""Stand between the training loop and its data: see each batch before and after it is fetched, and replay batches."""

import copy
from collections import deque
from collections.abc import Callable, Collection, Iterable
from typing import Any, NamedTuple

from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.fabric.utilities.types import _Stateful
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher, _PrefetchDataFetcher

Place = tuple[int, int]  # the loader's index of a batch, and which of the loaders that are used in sequence


class Kept(NamedTuple):
    """A batch to be replayed, as it was fetched, and whatever else its keeper wants back with it."""

    batch: Any
    along: Any = None


class FetcherTap:
    """Calls the guard around every fetch, and hands out batches to be replayed before new ones.

    Args:
        before_epoch: Called before the loader's iterator is made.
        before_batch: Called before a batch is fetched; if it is a replayed one, with that.
        after_batch: Called with what was fetched.
    """

    def __init__(
        self,
        before_epoch: Callable[[], None],
        before_batch: Callable[[Kept | None], None],
        after_batch: Callable[[Any], None],
    ) -> None:
        self.before_epoch = before_epoch
        self.before_new_batch: Callable[[], None] = lambda: None  # not before one that is replayed
        self._before_batch = before_batch
        self._after_batch = after_batch
        self._fetcher: _DataFetcher | None = None
        self._replay: deque[Kept] = deque()
        self._done_afterwards = False
        self._has_fetched = False

    @property
    def replays_left(self) -> int:
        """How many batches are still to be replayed."""
        return len(self._replay)

    @property
    def to_replay(self) -> list[Kept]:
        """The batches that are still to be replayed."""
        return list(self._replay)

    def attach(self, trainer: Trainer) -> None:
        """Tap the trainer's current fetcher; a fetcher that is tapped already stays so."""
        fetcher = trainer.fit_loop._data_fetcher
        assert fetcher is not None
        if fetcher is self._fetcher:
            return
        self.detach()
        # `next()` looks `__next__` up on the type, so the class is what has to change
        fetcher.__class__ = _tapped(type(fetcher), self)
        self._fetcher = fetcher

    def detach(self) -> None:
        """Give the fetcher its own class back."""
        if self._fetcher is not None:
            self._fetcher.__class__ = type(self._fetcher)._untapped  # pyright: ignore[reportAttributeAccessIssue]
        self._fetcher = None
        self._replay.clear()

    def replay(self, batches: Iterable[Kept]) -> None:
        """Hand out `batches` before anything new; the epoch is not over before they are used up.

        Batches that wait already must be taken back first.
        """
        assert self._fetcher is not None
        self._done_afterwards = self._fetcher.done
        self._replay = deque(batches)
        self._fetcher.done = self._done_afterwards and not self._replay

    def take_replays(self) -> list[Kept]:
        """Take back the batches that are still to be replayed."""
        batches = list(self._replay)
        self._replay.clear()
        if batches and self._fetcher is not None:
            self._fetcher.done = self._done_afterwards
        return batches

    def next(self, fetch: Callable[[], Any]) -> Any:
        """One batch: a replayed one while there are any, else a new one."""
        assert self._fetcher is not None
        self._before_batch(self._replay[0] if self._replay else None)
        if self._replay:
            batch = self._replay.popleft().batch
            self._fetcher.done = self._done_afterwards and not self._replay
        else:
            batch = self._fetch_new(fetch)
        self._after_batch(batch)
        return batch

    def _fetch_new(self, fetch: Callable[[], Any]) -> Any:
        has_fetched, self._has_fetched = self._has_fetched, True
        self.before_new_batch()
        try:
            return fetch()
        except StopIteration:
            if has_fetched:
                raise
            # the checkpoint of an epoch's last batch has set a loader behind it, where it gives nothing once
            type(self._fetcher)._untapped.__iter__(self._fetcher)  # pyright: ignore[reportAttributeAccessIssue]
            return fetch()


def _tapped(kind: type[_DataFetcher], tap: FetcherTap) -> type[_DataFetcher]:
    """A subclass of `kind` alone: an object may change its class only if the layout stays."""

    def iterate(self: Any) -> Any:
        tap.before_epoch()
        return kind.__iter__(self)

    def fetch(self: Any) -> Any:
        return tap.next(lambda: kind.__next__(self))

    return type(f"Tapped{kind.__name__}", (kind,), {"__iter__": iterate, "__next__": fetch, "_untapped": kind})


def hands_out_iterators(trainer: Trainer) -> bool:
    """Whether `training_step` takes a `dataloader_iter` and fetches for itself."""
    return isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher)


def before_first_iteration(trainer: Trainer, call: Callable[[], None]) -> None:
    """Call `call` just before the first iterator over the training data is made, which is before `on_train_start`."""
    fit_loop = trainer.fit_loop
    load_states = fit_loop._load_combined_loader_states

    def load_states_then_call() -> None:
        load_states()
        call()

    fit_loop._load_combined_loader_states = load_states_then_call


def forget_before_first_iteration(trainer: Trainer) -> None:
    """Undo `before_first_iteration`."""
    vars(trainer.fit_loop).pop("_load_combined_loader_states", None)


def make_loaders_again(trainer: Trainer) -> None:
    """Throw away the training loaders and their iterator, and make both anew from the counters as they are now."""
    trainer.fit_loop._combined_loader = None
    trainer.fit_loop.setup_data()


def make_loaders_if_due(trainer: Trainer) -> None:
    """Make them for `reload_dataloaders_every_n_epochs` now: of a resumed epoch no hook would tell of the new ones."""
    trainer.fit_loop.setup_data()


def set_sampler_epochs(trainer: Trainer) -> None:
    """Tell the samplers which epoch is resumed: Lightning does so only after worker processes began to fetch."""
    combined_loader = trainer.fit_loop._combined_loader
    assert combined_loader is not None
    for loader in combined_loader.flattened:
        _set_sampler_epoch(loader, vars(trainer.fit_loop.epoch_progress.current)["processed"])


def loaders_resume_by_themselves(trainer: Trainer) -> bool:
    """Whether every training loader has `state_dict` and `load_state_dict`, which Lightning then uses."""
    combined_loader = trainer.fit_loop._combined_loader
    return combined_loader is not None and all(isinstance(loader, _Stateful) for loader in combined_loader.flattened)


def resumes_in_part(trainer: Trainer) -> bool:
    """Whether some of the training loaders have a state, and others have none."""
    combined_loader = trainer.fit_loop._combined_loader
    assert combined_loader is not None
    stateful = [isinstance(loader, _Stateful) for loader in combined_loader.flattened]
    return any(stateful) and not all(stateful)


def states_of_loaders_that_read_ahead(trainer: Trainer) -> list[dict[str, Any]]:
    """The states of the training loaders, where Lightning reads a batch ahead since nobody knows how many there are."""
    fetcher, combined_loader = trainer.fit_loop._data_fetcher, trainer.fit_loop._combined_loader
    if combined_loader is None or not isinstance(fetcher, _PrefetchDataFetcher) or fetcher.length is not None:
        return []
    return copy.deepcopy(combined_loader._state_dicts())


def load_states_of_loaders(trainer: Trainer, states: list[dict[str, Any]]) -> None:
    """Give the training loaders their states, before an iterator is made."""
    combined_loader = trainer.fit_loop._combined_loader
    assert combined_loader is not None
    combined_loader._load_state_dicts(states)


def begin_epoch_again(trainer: Trainer) -> None:
    """Make the iterator over the training data once more, as often as Lightning makes it for an epoch."""
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    every = trainer.reload_dataloaders_every_n_epochs  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
    is_made_with_loaders = every > 0 and trainer.current_epoch > 0 and trainer.current_epoch % every == 0
    for _ in range(1 + is_made_with_loaders):
        iter(fetcher)  # pyright: ignore[reportArgumentType]


def place_of(fetched: Any) -> Place:
    """Where in the data a batch is from; what is fetched is a batch and two indices."""
    _, batch_idx, dataloader_idx = fetched
    return batch_idx, dataloader_idx


def pass_over_batches(trainer: Trainer, count: int, keep: Collection[Place] = (), counted_later: int = 0) -> list[Any]:
    """Fetch `count` batches and return those at the places to `keep`, the others are thrown away.

    Of the fetcher's count Lightning itself adds `counted_later` when it resumes. A `ValueError` says that there are not
    so many batches.
    """
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    fetched = fetcher.fetched
    kept = []
    for passed in range(count):
        try:
            batch = next(fetcher)
        except StopIteration:
            raise ValueError(
                f"`SpikeGuard` cannot resume: the checkpoint is {count} batches into its epoch, and the training data"
                f" has {passed}. Resume with the data of the run that wrote it."
            ) from None
        if keep and place_of(batch) in keep:
            kept.append(batch)
    fetcher.fetched = fetched + count - counted_later
    return kept
