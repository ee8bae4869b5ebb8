# SPDX-License-Identifier: Apache-2.0
"""What `AdaptiveBatchSize` refuses."""

import math

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.utils.data import DataLoader

from lightning_stable.callbacks import AdaptiveBatchSize
from lightning_stable.callbacks.batches.batch_refusals import refuse_trainer
from lightning_stable.optim import SAM
from tests.callbacks.noisy_runs import Data, Noisy, fit, grown, loader_grown, samples


def test_sharded_parameters_are_refused():
    trainer = Trainer(
        accelerator="cpu", devices=2, strategy=ModelParallelStrategy(2, 1), logger=False, enable_checkpointing=False
    )
    with pytest.raises(RuntimeError, match=r"which ModelParallelStrategy shards. Use `Trainer\(strategy='ddp'\)`"):
        refuse_trainer(trainer, LightningModule(), grows_loader=False)


# What is refused


class Manual(Noisy):
    automatic_optimization = False


class Iterates(Noisy):
    def training_step(self, dataloader_iter):
        return super().training_step(*next(dataloader_iter)[:2])


class Sharp(Noisy):
    def configure_optimizers(self):
        return SAM(self.parameters(), torch.optim.SGD, lr=0.01)


class Seldom(Noisy):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
        return [optimizer], [{"scheduler": scheduler, "interval": "step", "frequency": 2}]


class Stream(torch.utils.data.IterableDataset):
    def __iter__(self):
        yield from samples(8)


class Endless(Data):
    def train_dataloader(self):
        return DataLoader(Stream(), batch_size=self.batch_size)


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.parametrize(
    ("model", "message"),
    [
        (Manual, "Use automatic optimization"),
        (Iterates, r"Use `training_step\(self, batch, batch_idx\)`"),
        (Sharp, "`SAM`"),
        (Seldom, "`frequency: 1`"),
    ],
)
def test_runs_that_cannot_work_are_refused(model, message):
    with pytest.raises(RuntimeError, match=message):
        grown(model=model(), max_steps=2)


def test_callbacks_that_set_the_same_are_refused():
    with pytest.raises(RuntimeError, match=r"so does `GradientAccumulationScheduler`. Leave one of them out"):
        fit(AdaptiveBatchSize(), GradientAccumulationScheduler({0: 2}))


def test_a_loader_that_cannot_grow_is_refused():
    with pytest.raises(RuntimeError, match="needs the attribute `batch_size`"):
        grown(max_loader_batch_size=8)
    with pytest.raises(RuntimeError, match="an epoch whose length is known"):
        loader_grown(Endless())
    with pytest.raises(RuntimeError, match="a whole number, got None"):
        loader_grown(Data(batch_size=None))


def test_a_validation_every_so_many_batches_that_later_epochs_may_not_have_is_refused():
    message = r"may leave an epoch 6 batches, fewer than the 7 of `Trainer\(val_check_interval=...\)`. .* share"
    with pytest.raises(RuntimeError, match=message):  # 50 batches, and up to 8 times as large ones
        loader_grown(Data(), val_check_interval=7)
    loader_grown(Data(), val_check_interval=6)
    loader_grown(Data(), val_check_interval=7, check_val_every_n_epoch=None)
    loader_grown(Data(), val_check_interval=7, max_loader_batch_size=None, max_epochs=1)


def test_a_checkpoint_that_began_with_another_batch_is_refused(tmp_path):
    _, _, trainer = grown(max_steps=2)
    trainer.save_checkpoint(tmp_path / "two.ckpt")
    with pytest.raises(RuntimeError, match="began with `accumulate_grad_batches` 1, but now it is 2"):
        grown(ckpt_path=tmp_path / "two.ckpt", accumulate_grad_batches=2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"test": "norms"}, r"`AdaptiveBatchSize\(test=...\)` must be \"norm\" or \"inner_product\" or"),
        ({"scale_lr": "square"}, r"\(scale_lr=...\)` must be None or \"linear\" or \"sqrt\", got 'square'"),
        ({"eta": 0.0}, r"\(eta=...\)` must be above 0 and finite, got 0.0"),
        ({"theta": math.nan}, r"\(theta=...\)` must be above 0 and finite, got nan"),
        ({"nu": math.inf}, r"\(nu=...\)` must be above 0 and finite, got inf"),
        ({"every_n_steps": 0}, r"\(every_n_steps=...\)` must be a whole number of at least 1, got 0"),
        ({"every_n_steps": True}, r"at least 1, got True"),
        ({"max_accumulation": None}, r"\(max_accumulation=...\)` must be a whole number of at least 1, got None"),
        ({"max_batch_size": 2.5}, r"\(max_batch_size=...\)` must be a whole number of at least 1, got 2.5"),
        ({"max_loader_batch_size": -1}, r"\(max_loader_batch_size=...\)` must be a whole number of at least 1, got -1"),
        ({"smoothing": 1.0}, r"\(smoothing=...\)` must be at least 0 and less than 1, got 1.0"),
        ({"smoothing": math.nan}, "got nan"),
        ({"max_growth": 1.0}, r"\(max_growth=...\)` must be above 1, or the batch would never grow, got 1.0"),
        ({"max_growth": math.nan}, "got nan"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        AdaptiveBatchSize(**arguments)
