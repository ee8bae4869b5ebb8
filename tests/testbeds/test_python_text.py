# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch import LightningDataModule

from lightning_stable.testbeds import Corruption, PythonTextDataModule
from lightning_stable.testbeds.python_text import TextWindows, split_files


def small_text(tmp_path):
    (tmp_path / "b").mkdir()
    (tmp_path / "b" / "two.txt").write_bytes(b"b" * 100)
    (tmp_path / "one.txt").write_bytes(b"a" * 100)
    (tmp_path / ".hidden").write_bytes(b"h" * 100)
    (tmp_path / ".git").mkdir()
    (tmp_path / ".git" / "config").write_bytes(b"g" * 100)
    return tmp_path


def all_batches(data, n_epochs=1):
    data.setup("fit")
    loader, batches = data.train_dataloader(), []
    for epoch in range(n_epochs):
        loader.sampler.set_epoch(epoch)
        batches += list(loader)
    return batches


def test_the_text_is_real_python_and_about_two_megabytes():
    data = PythonTextDataModule()
    data.setup("fit")
    text = bytes(data.train_text.tolist())
    assert b"def parse_args(self" in text  # argparse
    assert b"assert" in text
    assert 1_000_000 < len(data.train_text) + len(data.val_text) <= 2_000_000
    assert len(data.val_text) / len(data.train_text) == pytest.approx(1 / 9, rel=0.01)


def test_two_data_modules_read_the_same_text():
    first, second = PythonTextDataModule(), PythonTextDataModule(seed=1)
    first.setup()
    second.setup()
    assert torch.equal(first.train_text, second.train_text)
    assert torch.equal(first.val_text, second.val_text)


def test_validation_is_the_last_tenth_of_every_file():
    files = [bytes(range(100)), bytes(range(100, 130)), b""]
    train, val = split_files(files)
    assert bytes(train.tolist()) == bytes(range(90)) + bytes(range(100, 127))
    assert bytes(val.tolist()) == bytes(range(90, 100)) + bytes(range(127, 130))


def test_no_validation_window_is_trained_on(tmp_path):
    counters = b"".join(b"%06d " % i for i in range(2000))  # every window of this text is unique
    (tmp_path / "counters.txt").write_bytes(counters)
    data = PythonTextDataModule(str(tmp_path / "counters.txt"), context=21, batch_size=4, val_batches=1000)
    trained = {number for batch in all_batches(data) for number in _numbers(batch)}
    validated = {number for batch in data.val_dataloader() for number in _numbers(batch)}
    assert len(trained) > 1700
    assert len(validated) > 150
    assert max(trained) < min(validated)


def _numbers(batch):
    for row in torch.cat([batch["tokens"], batch["targets"][:, -1:]], dim=1):
        yield from (int(word) for word in bytes(row.tolist()).split() if len(word) == 6)


def test_targets_are_the_bytes_that_follow():
    windows = TextWindows(torch.arange(20, dtype=torch.uint8), context=6)
    batch = windows.batch([2, 0])
    assert batch["tokens"].tolist() == [[12, 13, 14, 15, 16, 17], [0, 1, 2, 3, 4, 5]]
    assert batch["targets"].tolist() == [[13, 14, 15, 16, 17, 18], [1, 2, 3, 4, 5, 6]]
    assert batch["tokens"].dtype == batch["targets"].dtype == torch.int64
    assert batch["tokens"].is_contiguous()
    assert torch.equal(batch["embedding_scale"], torch.ones(2))
    assert len(TextWindows(torch.empty(0, dtype=torch.uint8), context=6)) == 0


def test_batches_are_the_same_for_any_number_of_workers_and_any_global_seed():
    def stream(num_workers, global_seed):
        torch.manual_seed(global_seed)
        corrupt = [Corruption("random_bytes", fraction=0.3), Corruption("nan_embedding", batches=[9])]
        data = PythonTextDataModule(batches_per_epoch=6, num_workers=num_workers, corrupt=corrupt)
        return all_batches(data, n_epochs=2)

    for alone, shared in zip(stream(0, 1), stream(2, 2), strict=True):
        for key in alone:
            torch.testing.assert_close(alone[key], shared[key], rtol=0, atol=0, equal_nan=True)


def test_exactly_the_named_batches_are_corrupted_and_validation_is_clean():
    corrupt = [Corruption("nan_embedding", batches=[2, 7])]
    data = PythonTextDataModule(batches_per_epoch=5, val_batches=3, corrupt=corrupt)
    clean = all_batches(PythonTextDataModule(batches_per_epoch=5), n_epochs=2)
    dirty = all_batches(data, n_epochs=2)
    assert [i for i, batch in enumerate(dirty) if batch["embedding_scale"].isnan().all()] == [2, 7]
    assert all(torch.equal(one["tokens"], other["tokens"]) for one, other in zip(clean, dirty, strict=True))
    assert all(torch.equal(batch["embedding_scale"], torch.ones(16)) for batch in data.val_dataloader())


def test_dropping_equals_the_stream_without_these_batches():
    whole = all_batches(PythonTextDataModule(batches_per_epoch=6))
    kept = all_batches(PythonTextDataModule(batches_per_epoch=6, drop=[0, 3]))
    assert len(kept) == 4
    for i, batch in zip((1, 2, 4, 5), kept, strict=True):
        assert torch.equal(batch["tokens"], whole[i]["tokens"])


def test_a_directory_is_read_in_the_order_of_its_paths_without_hidden_files(tmp_path):
    data = PythonTextDataModule(str(small_text(tmp_path)), context=4, batch_size=2)
    data.setup("fit")
    assert bytes(data.train_text.tolist()) == b"b" * 90 + b"a" * 90
    assert bytes(data.val_text.tolist()) == b"b" * 10 + b"a" * 10


def test_few_validation_bytes_make_fewer_batches(tmp_path):
    data = PythonTextDataModule(str(small_text(tmp_path)), context=4, batch_size=2, val_batches=50)
    data.setup("fit")
    assert len(data.val_dataloader()) == len(list(data.val_dataloader())) == 2


def test_it_is_made_from_yaml():
    parser = ArgumentParser(exit_on_error=False)
    parser.add_subclass_arguments(LightningDataModule, "data")
    corrupt = [{"kind": "random_bytes", "batches": [5, 6]}, {"kind": "huge_scale", "fraction": 0.01, "seed": 3}]
    init_args = {"context": 16, "batches_per_epoch": 10, "corrupt": corrupt, "drop": [1]}
    config = {"class_path": "lightning_stable.testbeds.PythonTextDataModule", "init_args": init_args}
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # the latter until 4.48
    data = instantiate(parser.parse_object({"data": config})).data
    assert isinstance(data, PythonTextDataModule)
    assert data.plan.corrupt == [
        Corruption("random_bytes", batches=[5, 6]),
        Corruption("huge_scale", fraction=0.01, seed=3),
    ]
    assert data.plan.drop == [1]


def test_a_missing_text_is_refused():
    with pytest.raises(ValueError, match=r"text_path=\.\.\.\)` must be a file or a directory, got '/no/such/text'\."):
        PythonTextDataModule("/no/such/text").setup("fit")


@pytest.mark.parametrize(
    ("length", "batch_size", "message"),
    [
        (0, 16, r"must hold at least 2049 bytes for training, got 0 from '.*'"),
        (500, 16, r"must hold at least 2049 bytes for training, got 450 from .*lower `batch_size` or `context`"),
        (500, 2, r"must hold at least 129 bytes for validation, got 50 from"),
    ],
)
def test_a_small_text_is_refused(tmp_path, length, batch_size, message):
    (tmp_path / "small.txt").write_bytes(b"x" * length)
    with pytest.raises(ValueError, match=message):
        PythonTextDataModule(str(tmp_path / "small.txt"), batch_size=batch_size).setup("fit")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"context": 0}, r"`PythonTextDataModule\(context=\.\.\.\)` must be at least 1, got 0\."),
        ({"val_batches": 0}, r"`PythonTextDataModule\(val_batches=\.\.\.\)` must be at least 1, got 0\."),
        ({"batch_size": -1}, r"`PythonTextDataModule\(batch_size=\.\.\.\)` must be at least 1, got -1\."),
    ],
)
def test_bad_arguments_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        PythonTextDataModule(**kwargs)
