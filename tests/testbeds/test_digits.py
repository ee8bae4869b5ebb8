# SPDX-License-Identifier: Apache-2.0
import sys

import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from lightning_stable.testbeds import Corruption, DigitsDataModule
from lightning_stable.testbeds.digits import LabelledImages


def all_batches(data, n_epochs=1):
    data.setup("fit")
    loader, batches = data.train_dataloader(), []
    for epoch in range(n_epochs):
        loader.sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def test_the_split_holds_every_digit_once():
    from sklearn.datasets import load_digits

    data = DigitsDataModule()
    data.setup("fit")
    pixels = torch.cat([data.train_images.pixels, data.val_images.pixels]).flatten(1)
    every = torch.tensor(load_digits().data, dtype=torch.float32) / 16
    assert sorted(map(tuple, pixels.tolist())) == sorted(map(tuple, every.tolist()))
    assert (len(data.train_images), len(data.val_images)) == (1437, 360)
    assert (pixels.min().item(), pixels.max().item()) == (0.0, 1.0)
    assert data.val_images.targets.bincount().min() >= 20


def test_images_and_labels_belong_together():
    images = LabelledImages(torch.arange(3.0).view(3, 1, 1, 1), torch.arange(3))
    batch = images.batch([2, 0])
    assert batch["pixels"].flatten().tolist() == batch["targets"].tolist() == [2, 0]


def test_the_split_does_not_depend_on_the_seed_and_the_order_does():
    first, second = DigitsDataModule(seed=0), DigitsDataModule(seed=1)
    one, other = all_batches(first)[0], all_batches(second)[0]
    assert torch.equal(first.val_images.pixels, second.val_images.pixels)
    assert not torch.equal(one["pixels"], other["pixels"])


def test_batches_are_the_same_for_any_number_of_workers_and_any_global_seed():
    def stream(num_workers, global_seed):
        torch.manual_seed(global_seed)
        corrupt = [Corruption("random_bytes", fraction=0.3), Corruption("shuffled_labels", batches=[9])]
        data = DigitsDataModule(batches_per_epoch=6, num_workers=num_workers, corrupt=corrupt)
        return all_batches(data, n_epochs=2)

    for alone, shared in zip(stream(0, 1), stream(2, 2), strict=True):
        assert torch.equal(alone["pixels"], shared["pixels"])
        assert torch.equal(alone["targets"], shared["targets"])


def test_exactly_the_named_batches_are_corrupted_and_validation_is_clean():
    data = DigitsDataModule(corrupt=[Corruption("huge_scale", batches=[2, 50])])
    assert [i for i, batch in enumerate(all_batches(data, n_epochs=2)) if batch["pixels"].max() > 1] == [2, 50]
    assert all(batch["pixels"].max() <= 1 for batch in data.val_dataloader())


def test_dropping_equals_the_stream_without_these_batches():
    whole = all_batches(DigitsDataModule())
    kept = all_batches(DigitsDataModule(drop=[0, 3]))
    assert len(kept) == len(whole) - 2
    assert torch.equal(kept[0]["pixels"], whole[1]["pixels"])
    assert torch.equal(kept[2]["pixels"], whole[4]["pixels"])


def test_it_is_made_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    init_args = {"batch_size": 8, "corrupt": [{"kind": "constant", "batches": [5]}]}
    config = {"class_path": "lightning_stable.testbeds.DigitsDataModule", "init_args": init_args}
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the latter until 4.48
    data = instantiate(parser.parse_object({"data": config})).data
    assert isinstance(data, DigitsDataModule)
    assert data.plan.corrupt == [Corruption("constant", batches=[5])]


def test_a_missing_scikit_learn_is_named_with_its_remedy(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn.datasets", None)
    with pytest.raises(ImportError, match=r"needs scikit-learn\. Run `pip install 'lightning-stable\[recipes\]'`"):
        DigitsDataModule().setup("fit")


def test_bad_arguments_are_refused():
    with pytest.raises(ValueError, match=r"`DigitsDataModule\(batch_size=\.\.\.\)` must be at least 1, got 0\."):
        DigitsDataModule(batch_size=0)
