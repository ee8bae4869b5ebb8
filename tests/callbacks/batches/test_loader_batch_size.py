# SPDX-License-Identifier: Apache-2.0
import pytest
from lightning.pytorch import LightningDataModule, LightningModule, Trainer

from lightning_stable.callbacks.batches.loader_batch_size import LoaderBatchSize


class Net(LightningModule):
    def __init__(self, batch_size=16):
        super().__init__()
        self.save_hyperparameters()


class Data(LightningDataModule):
    def __init__(self, batch_size=2):
        super().__init__()
        self.save_hyperparameters()
        self.batch_size = batch_size


def trainer_with(data=None):
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    trainer.datamodule = data
    return trainer


def test_all_are_set_and_each_gets_back_its_own():
    net, data = Net(16), Data(2)
    data.hparams.batch_size = 3
    size = LoaderBatchSize(trainer_with(data), net)
    assert size.first == 3  # the last one counts, as in Lightning
    size.set(8)
    assert (net.hparams.batch_size, data.batch_size, data.hparams.batch_size) == (8, 8, 8)
    size.restore()
    assert (net.hparams.batch_size, data.batch_size, data.hparams.batch_size) == (16, 2, 3)


@pytest.mark.parametrize("loaded", [4, 8])
def test_a_resumed_run_may_have_the_first_size_or_the_one_it_was_saved_with(loaded):
    net = Net(loaded)
    size = LoaderBatchSize(trainer_with(), net)
    size.resume(first=4, times=2)
    assert net.hparams.batch_size == 8
    size.restore()
    assert net.hparams.batch_size == 4


def test_another_size_is_refused():
    size = LoaderBatchSize(trainer_with(), Net(16))
    with pytest.raises(RuntimeError, match=r"began with `batch_size` 4, but now it is 16\. Resume with"):
        size.resume(first=4, times=2)


@pytest.mark.parametrize("value", [None, 0, 2.5])
def test_what_is_no_whole_number_is_refused(value):
    with pytest.raises(RuntimeError, match=f"a whole number, got {value}"):
        LoaderBatchSize(trainer_with(), Net(value))
    with pytest.raises(RuntimeError, match="a whole number, got None"):
        LoaderBatchSize(trainer_with(), LightningModule())
