# SPDX-License-Identifier: Apache-2.0
"""The private parts of Lightning's data fetching that this pack relies on."""

import pytest
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.utilities import CombinedLoader

from lightning_stable._lightning import data_fetcher
from tests.faulty_runs import Batches, Net, make_batches, run


@pytest.mark.parametrize("name", ["_data_fetcher", "_combined_loader", "_load_combined_loader_states"])
def test_the_fit_loop_still_has_it(name):
    assert hasattr(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit_loop, name)


@pytest.mark.parametrize("name", ["_state_dicts", "_load_state_dicts"])
def test_a_combined_loader_still_has_it(name):
    assert callable(getattr(CombinedLoader([]), name))


class Taps(Callback):
    def __init__(self):
        self.calls, self.seen = [], []

    def on_train_start(self, trainer, pl_module):
        self.tap = data_fetcher.FetcherTap(
            before_epoch=lambda: self.calls.append("epoch"),
            before_batch=lambda kept: self.calls.append("before"),
            after_batch=lambda item: self.calls.append("after"),
        )
        self.tap.attach(trainer)
        self.kind = type(trainer.fit_loop._data_fetcher)
        self.tap.attach(trainer)  # a second time is nothing
        assert type(trainer.fit_loop._data_fetcher) is self.kind

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.seen.append(batch["x"][0, 0].item())

    def on_train_end(self, trainer, pl_module):
        self.tap.detach()
        assert type(trainer.fit_loop._data_fetcher) is self.kind._untapped


def test_every_fetch_is_seen_and_the_fetcher_is_given_back():
    taps = Taps()
    run(make_batches(3), [taps], epochs=2)
    assert taps.calls == ["before", "after"] * 3 + ["epoch"] + ["before", "after"] * 3
    assert taps.seen == [batch["x"][0, 0].item() for batch in make_batches(3)] * 2


def test_replayed_batches_come_before_new_ones_and_can_be_taken_back():
    class Fetcher:
        done = False

        def __init__(self):
            self.fresh = iter("def")

        def __iter__(self):
            return self

        def __next__(self):
            return next(self.fresh)

    class Loop:
        _data_fetcher = Fetcher()

    class Stub:
        fit_loop = Loop()

    announced = []
    tap = data_fetcher.FetcherTap(lambda: None, lambda kept: announced.append(kept and kept.batch), lambda item: None)
    tap.attach(Stub())
    fetcher = Stub.fit_loop._data_fetcher
    fetcher.done = True  # as at the last batch of an epoch
    tap.replay(data_fetcher.Kept(batch) for batch in "abc")
    assert not fetcher.done
    assert [next(fetcher), tap.replays_left] == ["a", 2]
    assert tap.to_replay == [("b", None), ("c", None)]
    assert tap.take_replays() == [("b", None), ("c", None)]
    assert fetcher.done
    tap.replay(data_fetcher.Kept(batch, along="side") for batch in "bc")
    assert [next(fetcher), fetcher.done, next(fetcher), fetcher.done] == ["b", False, "c", True]
    assert next(fetcher) == "d"
    assert announced == ["a", "b", "c", None]


def test_the_first_iterator_can_be_awaited():
    calls = []

    class Waits(Callback):
        def setup(self, trainer, pl_module, stage):
            data_fetcher.before_first_iteration(trainer, lambda: calls.append(trainer.fit_loop._data_fetcher))

        def on_train_start(self, trainer, pl_module):
            calls.append("start")
            data_fetcher.forget_before_first_iteration(trainer)
            assert not data_fetcher.loaders_resume_by_themselves(trainer)
            assert not data_fetcher.hands_out_iterators(trainer)

    run(make_batches(3), [Waits()], epochs=1)
    assert calls == [None, "start"]


def test_batches_can_be_passed_over():
    seen = []

    class PassesOver(Callback):
        def on_train_start(self, trainer, pl_module):
            kept = data_fetcher.pass_over_batches(trainer, 2, keep=[(1, 0)], counted_later=2)
            assert [data_fetcher.place_of(batch) for batch in kept] == [(1, 0)]
            assert trainer.fit_loop._data_fetcher.fetched == 0

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch["x"][0, 0].item())

    run(make_batches(4), [PassesOver()], epochs=1)
    assert seen == [batch["x"][0, 0].item() for batch in make_batches(4)[2:]]


class OneBatch:
    """A loader with a state, and a length if it is told one."""

    def __init__(self):
        self.loaded = None

    def __iter__(self):
        return iter(make_batches(1))

    def state_dict(self):
        return {"given": [0]}

    def load_state_dict(self, state_dict):
        self.loaded = state_dict


class OneBatchOfOne(OneBatch):
    def __len__(self):
        return 1


@pytest.mark.parametrize(("kind", "ahead"), [(OneBatch, [{"given": [0]}]), (OneBatchOfOne, [])])
def test_loaders_without_a_length_are_read_ahead_and_can_be_given_a_state(kind, ahead):
    loader, calls = kind(), []

    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            calls.append(data_fetcher.states_of_loaders_that_read_ahead(trainer))
            data_fetcher.load_states_of_loaders(trainer, [{"given": [7]}])
            assert not data_fetcher.resumes_in_part(trainer)
            loaders = trainer.fit_loop._combined_loader
            data_fetcher.make_loaders_if_due(trainer)
            assert trainer.fit_loop._combined_loader is loaders  # no, they are not

    run([], [Looks()], epochs=1, loaders=lambda _: loader)
    assert calls == [ahead]
    assert loader.loaded == {"given": [7]}


class Idle(Net):
    def training_step(self, batch, batch_idx):
        return super().training_step(batch[0] if isinstance(batch, list) else batch, batch_idx)


def test_it_is_seen_that_some_loaders_have_a_state_and_others_have_none():
    seen = []

    class Looks(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(data_fetcher.resumes_in_part(trainer))

    for loaders in (lambda batches: [OneBatchOfOne(), Batches(batches)], None):
        run(make_batches(1), [Looks()], epochs=1, loaders=loaders, limit_train_batches=1, model=Idle)
    assert seen == [True, False]


def test_an_epoch_can_begin_again():
    tapped = []

    class Begins(Callback):
        def on_train_start(self, trainer, pl_module):
            tap = data_fetcher.FetcherTap(lambda: tapped.append("iterator"), lambda kept: None, lambda item: None)
            tap.before_new_batch = lambda: tapped.append("new")
            tap.attach(trainer)
            next(trainer.fit_loop._data_fetcher)
            data_fetcher.begin_epoch_again(trainer)

    run(make_batches(2), [Begins()], epochs=1)
    assert tapped == ["new", "iterator", "new", "new"]
