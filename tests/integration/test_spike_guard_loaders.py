# SPDX-License-Identifier: Apache-2.0
"""The guard over every kind of training data that Lightning takes: undone batches leave no trace, resumes are exact."""

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, IterableDataset, get_worker_info

from lightning_stable.guard import Rollback, SkipStep
from tests.faulty_runs import Batches, Net, assert_same, make_batches, run
from tests.guard.resume.test_exact_resume import comparable
from tests.guard.test_spike_guard import guard, without

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*callbacks used to create the checkpoint need to be provided.*",
    "ignore:Trying to infer the `batch_size` from an ambiguous collection",
)

COUNT, SECOND = 12, 5  # batches of the first loader, and of the one beside it
RESPONSES = {"skip": lambda: SkipStep(times=99), "replay": lambda: Rollback(mode="replay", times=99)}


class Pairs(Net):
    """A batch may be several, in a dictionary or a list; a loader that is used up gives `None`."""

    def training_step(self, batch, batch_idx):
        parts = list(batch.values()) if isinstance(batch, dict) else batch
        if "x" not in batch:
            batch = {key: torch.cat([part[key] for part in parts if part is not None]) for key in ("x", "y")}
        return super().training_step(batch, batch_idx)


class Stream(IterableDataset):
    """Batches without a length, dealt out to workers in turn."""

    def __init__(self, batches):
        self.batches = batches

    def __iter__(self):
        worker = get_worker_info()
        first, step = (worker.id, worker.num_workers) if worker else (0, 1)
        return iter(self.batches[first::step])


class WithState:
    """A loader with a state; like torchdata's it notices its end when it is asked for one batch more."""

    def __init__(self, batches):
        self.batches = batches
        self.given, self.is_over, self._is_resumed = 0, False, False

    def __len__(self):
        return len(self.batches)

    def __iter__(self):
        goes_on = self._is_resumed and not self.is_over
        self.given, self.is_over, self._is_resumed = (self.given if goes_on else 0), False, False
        while self.given < len(self.batches):
            self.given += 1
            yield {key: value.clone() for key, value in self.batches[self.given - 1].items()}
        self.is_over = True

    def state_dict(self):
        return {"given": self.given, "is_over": self.is_over}

    def load_state_dict(self, state_dict):
        self.given, self.is_over, self._is_resumed = state_dict["given"], state_dict["is_over"], True


class StreamWithState(WithState):
    """The same, without a length."""

    __len__ = None


def loader(batches, **arguments):
    """With a generator of its own: a loader that begins again, as the shorter one of a cycle does, draws from it."""
    return DataLoader(Batches(batches), batch_size=None, generator=torch.Generator().manual_seed(0), **arguments)


def stream(batches, **arguments):
    return DataLoader(Stream(batches), batch_size=None, generator=torch.Generator().manual_seed(0), **arguments)


def second(times=1):
    return loader(make_batches(COUNT + SECOND)[COUNT:] * times)


LOADERS = {
    "with a state": WithState,
    "stream": stream,
    "stream, two workers": lambda batches: stream(batches, num_workers=2),
    "stream with a state": StreamWithState,
    "dictionary": lambda batches: {"a": loader(batches), "b": second()},
    "list, one a stream": lambda batches: [stream(batches), second()],
    "max_size_cycle": lambda batches: CombinedLoader([loader(batches), second()], "max_size_cycle"),
    "max_size": lambda batches: CombinedLoader({"a": loader(batches), "b": second()}, "max_size"),
    "min_size": lambda batches: CombinedLoader({"a": loader(batches), "b": second(times=4)}, "min_size"),
}


class Whatever(torch.utils.data.Dataset):
    """What a loader has given, once more."""

    def __init__(self, items):
        self.items = items

    def __len__(self):
        return len(self.items)

    def __getitem__(self, index):
        return self.items[index]


def without_them(kind, bad):
    """A loader that never held the bad ones of what `kind` gives."""
    given = LOADERS[kind](make_batches(COUNT))
    combined = given if isinstance(given, CombinedLoader) else CombinedLoader(given, "max_size_cycle")
    left = without([item for item, _, _ in combined], bad)
    own = torch.Generator().manual_seed(0)
    if "stream" in kind:
        return lambda _: DataLoader(Stream(left), batch_size=None, generator=own)
    return lambda _: DataLoader(Whatever(left), batch_size=None, generator=own)


@pytest.mark.parametrize("bad", [{0}, {4, 5, 6}, {COUNT - 1}], ids=str)
@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("kind", LOADERS)
def test_what_was_undone_was_never_in_the_loader(kind, response, bad):
    guarded = guard(RESPONSES[response](), snapshot_every=4)
    actual = run(make_batches(COUNT, bad), [guarded], model=Pairs, loaders=LOADERS[kind])
    assert_same(actual, run(make_batches(COUNT), model=Pairs, loaders=without_them(kind, bad)))
    assert len(guarded.incidents) == 2 * len(bad)


def test_a_combination_that_lightning_does_not_train_on_is_refused_by_lightning():
    with pytest.raises(ValueError, match=r'does not support the `CombinedLoader\(mode="sequential"\)` mode'):
        run(make_batches(3), [guard(SkipStep())], loaders=lambda batches: CombinedLoader(loader(batches), "sequential"))


# Resumed

BAD, EPOCHS = {2, 9}, 3  # so an epoch has ten steps


def checkpoints(folder):
    return ModelCheckpoint(folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def assert_resumes_exactly(folder, steps, **arguments):
    arguments = {"epochs": EPOCHS, "model": Pairs, **arguments}
    whole, every_step = guard(SkipStep(times=99)), checkpoints(folder)
    expected = comparable(run(make_batches(COUNT, BAD), [whole, every_step], enable_checkpointing=True, **arguments))
    for step in steps:
        second_half = guard(SkipStep(times=99))
        resumed = run(make_batches(COUNT, BAD), [second_half], ckpt_path=folder / f"step={step}.ckpt", **arguments)
        assert_same(comparable(resumed), expected)
        assert [str(one) for one in second_half.incidents] == [str(one) for one in whole.incidents]


@pytest.mark.parametrize("kind", LOADERS)
def test_a_resumed_run_is_the_one_that_was_not_interrupted(tmp_path, kind):
    assert_resumes_exactly(tmp_path, (3, 9, 10, 13, 20), loaders=LOADERS[kind])


@pytest.mark.parametrize("num_workers", [0, 2])
def test_a_checkpoint_of_the_last_batch_is_that_of_an_order_still_to_be_drawn(tmp_path, num_workers):
    """It is written before the epoch's validation, which draws random numbers, too."""
    assert_resumes_exactly(tmp_path, (10, 20), shuffle=True, num_workers=num_workers)


def test_loaders_of_which_some_have_a_state_do_not_resume_exactly_and_it_is_said(tmp_path):
    def mixed(batches):
        return {"a": WithState(batches), "b": loader(batches)}

    class SeesPairs(Pairs):
        def __init__(self):
            super().__init__()
            self.pairs = []

        def training_step(self, batch, batch_idx):
            self.pairs.append([batch[name]["x"] for name in "ab"])
            return super().training_step(batch, batch_idx)

    batches, holder, path = make_batches(COUNT), [], tmp_path / "step=5.ckpt"
    run(batches, [guard(SkipStep()), checkpoints(tmp_path)], model=Pairs, enable_checkpointing=True, loaders=mixed)
    arguments = {"model": lambda: holder.append(SeesPairs()) or holder[0], "loaders": mixed, "ckpt_path": path}
    with pytest.warns(UserWarning, match="Some of the training loaders have `state_dict`"):
        run(batches, [guard(SkipStep())], epochs=1, **arguments)
    assert_same(holder[0].pairs[0], [batches[5]["x"], batches[0]["x"]])  # as Lightning alone would go on


# Made anew in every epoch


class EveryEpoch(LightningDataModule):
    """Each epoch begins with another batch, in an order drawn from the global generator if told so."""

    def __init__(self, validation, shuffle, bad=(), left_out=()):
        super().__init__()
        self.validation, self.shuffle, self.bad, self.left_out = validation, shuffle, bad, left_out

    def train_dataloader(self):
        first = self.trainer.current_epoch
        batches = [*make_batches(COUNT, self.bad)[first:], *make_batches(COUNT, self.bad)[:first]]
        kept = [batch for index, batch in enumerate(batches) if (index + first) % COUNT not in self.left_out]
        return DataLoader(Batches(kept), batch_size=None, shuffle=self.shuffle)

    def val_dataloader(self):
        return self.validation


def from_module(shuffle=False, **faults):
    def fit(trainer, module, _, validation, ckpt_path):
        trainer.fit(module, datamodule=EveryEpoch(validation, shuffle, **faults), ckpt_path=ckpt_path)

    return {"fit": fit, "reload_dataloaders_every_n_epochs": 1}


@pytest.mark.parametrize("bad", [{0}, {1, 2}, {5}], ids=str)
@pytest.mark.parametrize("response", RESPONSES)
def test_loaders_that_are_made_anew_in_every_epoch(response, bad):
    guarded = guard(RESPONSES[response](), snapshot_every=4)
    actual = run([], [guarded], epochs=3, **from_module(bad=bad))
    assert_same(actual, run([], epochs=3, **from_module(left_out=bad)))
    assert len(guarded.incidents) == 3 * len(bad)


def test_a_resume_makes_them_as_they_were(tmp_path):
    assert_resumes_exactly(tmp_path, (3, 9, 10, 13, 20), model=Net, **from_module(shuffle=True, bad=BAD))
