# SPDX-License-Identifier: Apache-2.0
"""A copy of the training loaders gives what they give, and they do not notice."""

import threading

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import CombinedLoader
from torch.utils.data import DataLoader, Dataset, IterableDataset

from lightning_stable._lightning import training_data
from lightning_stable._lightning.training_data import TrainingDataCopy

X = torch.arange(12.0)[:, None]


class Net(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Reads(Callback):
    """Takes some batches of a copy, twice, in front of each epoch."""

    def __init__(self, count):
        self.count, self.read, self.trained = count, [], []

    def on_train_epoch_start(self, trainer, pl_module):
        copies = TrainingDataCopy(trainer, asked_by="`Reads()`")
        for _ in range(2):
            torch.manual_seed(5)
            batches = copies.from_the_beginning()
            self.read.append([next(batches).flatten().tolist() for _ in range(self.count)])
            batches.close()
        self.copies = copies

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.trained.append(batch.flatten().tolist())


def run(loader, count=5, **settings):
    reads = Reads(count)
    trainer = Trainer(
        **{"max_epochs": 1, **settings},
        accelerator="cpu",
        devices=1,
        callbacks=[reads],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(Net(), loader)
    return reads


def test_lightning_still_has_what_is_touched():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    assert trainer.fit_loop._combined_loader is None
    assert CombinedLoader([], "max_size_cycle")._mode == "max_size_cycle"
    assert DataLoader(X)._iterator is None


def test_batches_come_in_order_and_begin_again_when_they_are_used_up():
    reads = run(DataLoader(X, batch_size=4))
    expected = [[0.0, 1.0, 2.0, 3.0], [4.0, 5.0, 6.0, 7.0], [8.0, 9.0, 10.0, 11.0]]
    assert reads.read == [expected + expected[:2]] * 2
    assert reads.trained == expected


def test_limits_of_the_trainer_hold():
    assert run(DataLoader(X, batch_size=4), limit_train_batches=1).read[0] == [[0.0, 1.0, 2.0, 3.0]] * 5


@pytest.mark.parametrize("workers", [0, 1])
def test_an_epoch_under_way_is_not_disturbed(workers):
    def loader():
        generator = torch.Generator().manual_seed(2)
        return DataLoader(
            X, batch_size=4, shuffle=True, generator=generator, num_workers=workers, persistent_workers=workers > 0
        )

    reads = run(loader(), max_epochs=3)
    assert reads.trained == run(loader(), count=0, max_epochs=3).trained
    assert reads.read[0] == reads.read[1]


def test_what_is_large_is_shared_and_what_is_small_is_not(monkeypatch):
    monkeypatch.setattr(training_data, "LARGE", 1000)

    class Arrays(Dataset):
        def __init__(self):
            self.large = {"array": [np.zeros(1000)], "tensor": (torch.zeros(1000),)}
            self.small = torch.zeros(2)
            self.myself = self

        def __len__(self):
            return 12

        def __getitem__(self, index):
            return X[index]

    dataset = Arrays()
    reads = run(DataLoader(dataset))
    copied = reads.copies._pristine.flattened[0].dataset
    assert copied is not dataset
    assert copied.myself is copied
    assert copied.large["array"][0] is dataset.large["array"][0]
    assert copied.large["tensor"][0] is dataset.large["tensor"][0]
    assert copied.small is not dataset.small


class Locked(Dataset):
    def __init__(self):
        self.lock = threading.Lock()

    def __len__(self):
        return 12

    def __getitem__(self, index):
        with self.lock:
            return X[index]


def test_samples_that_cannot_be_copied_are_read_where_they_are():
    with pytest.warns(
        UserWarning, match=r"`Reads\(\)` cannot copy the `Locked` \(TypeError: cannot pickle '_thread.lock'"
    ):
        reads = run(DataLoader(Locked(), batch_size=6), count=2)
    assert reads.read[0] == reads.trained


class LockedStream(IterableDataset):
    def __init__(self):
        self.lock = threading.Lock()

    def __iter__(self):
        return iter(X)


class LockedLoader(LockedStream):
    pass


@pytest.mark.parametrize("loader", [DataLoader(LockedStream()), LockedLoader()], ids=["data set", "loader"])
def test_what_keeps_its_place_and_cannot_be_copied_is_an_error(loader):
    with pytest.raises(ValueError, match=r"`Reads\(\)` reads from a copy .* a `Locked\w+` cannot be copied"):
        run(loader)


def test_live_iterators_stay_with_their_loaders():
    loader = DataLoader(X, batch_size=4, num_workers=1, persistent_workers=True)
    iterator = iter(loader)
    assert loader._iterator is iterator
    taken = training_data._take_iterator(loader)
    assert taken is iterator
    assert loader._iterator is None
    loader._iterator = taken
    iterator._shutdown_workers()


def test_data_without_a_batch_are_an_error():
    class Empty(IterableDataset):
        def __iter__(self):
            return iter(())

    class Fake:
        class fit_loop:
            _combined_loader = CombinedLoader([DataLoader(Empty())], "max_size_cycle")

        lightning_module = datamodule = None

    with pytest.raises(ValueError, match="needs training data, and the training loader gives no batch"):
        next(TrainingDataCopy(Fake(), asked_by="`Reads()`").from_the_beginning())
