# SPDX-License-Identifier: Apache-2.0
from contextlib import ExitStack

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_stable._lightning.training_batches import change_training_batches

DATA = torch.arange(12.0).view(6, 2)


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(2, 1)
        self.seen = {"train": [], "validate": []}

    def training_step(self, batch, batch_idx):
        self.seen["train"].append(batch[0].clone())
        return self.layer(batch[0]).mean()

    def validation_step(self, batch, batch_idx):
        assert not self.trainer.training
        self.seen["validate"].append(batch[0].clone())

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class TakesIterator(Model):
    def training_step(self, dataloader_iter):
        batch, _, _ = next(dataloader_iter)
        return self.layer(batch[0]).mean()


class Data(LightningDataModule):
    """With a transfer hook of its own, which sees batches as they are."""

    def __init__(self):
        super().__init__()
        self.seen = []

    def train_dataloader(self):
        return DataLoader(torch.utils.data.TensorDataset(DATA), batch_size=2)

    val_dataloader = train_dataloader

    def on_after_batch_transfer(self, batch, dataloader_idx):
        self.seen.append(batch[0].clone())
        return batch


class Negate(Callback):
    def __init__(self):
        self.undo, self.hooks = ExitStack(), []

    def on_train_start(self, trainer, pl_module):
        change_training_batches(self.undo, trainer, "Negate", lambda batch: [-tensor for tensor in batch])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.hooks.append(batch[0].clone())

    def on_train_end(self, trainer, pl_module):
        self.undo.close()


def fit(model, *callbacks):
    data = Data()
    trainer = Trainer(
        max_epochs=1,
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        val_check_interval=2,
    )
    trainer.fit(model, data)
    return data, trainer


def test_every_batch_that_is_trained_on_is_changed_before_anybody_sees_it_and_no_other():
    model, negate = Model(), Negate()
    data, _ = fit(model, negate)
    for seen in (model.seen["train"], negate.hooks):
        assert torch.equal(torch.cat(seen), -DATA)
    assert all((batch >= 0).all() for batch in model.seen["validate"])
    assert all((batch >= 0).all() for batch in data.seen)  # the user's own hook had them as they were


def test_several_changes_go_in_any_order_and_leave_nothing_behind():
    model = Model()
    _, trainer = fit(model, Negate(), Negate())
    assert torch.equal(torch.cat(model.seen["train"]), DATA)
    assert "batch_to_device" not in vars(trainer.strategy)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
def test_a_step_that_fetches_for_itself_is_refused():
    with pytest.raises(RuntimeError, match=r"`Negate` needs a `training_step` that takes a batch"):
        fit(TakesIterator(), Negate())
