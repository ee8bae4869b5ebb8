# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from pytorch_optimizer import ScheduleFreeAdamW
from torch.utils.data import DataLoader

from lightning_stable.callbacks import ScheduleFree

DATA = torch.randn(30, 4, generator=torch.Generator().manual_seed(0))


class Model(LightningModule):
    def __init__(self, kind=ScheduleFreeAdamW):
        super().__init__()
        torch.manual_seed(0)
        self.layer, self.kind = torch.nn.Linear(4, 1), kind

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.layer(batch).square().mean())

    def configure_optimizers(self):
        return self.kind(self.parameters(), lr=0.1)


class Weights(Callback):
    """Notes the weights that are validated, and those that training goes on with."""

    def __init__(self):
        self.validated, self.trained = [], []

    def on_validation_epoch_start(self, trainer, pl_module):
        self.validated.append(pl_module.layer.weight.detach().clone())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.trained.append(pl_module.layer.weight.detach().clone())


def fit(callbacks, model=None, **settings):
    model = model or Model()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_epochs": 1, "num_sanity_val_steps": 1, **settings},
    )
    trainer.fit(model, DataLoader(DATA), DataLoader(DATA[:2]))
    return model, trainer


def average(steps):
    """The weights that the optimizer itself shows after so many steps."""
    model = Model()
    optimizer = model.configure_optimizers()
    optimizer.train()
    for batch in DATA[:steps, None]:
        optimizer.zero_grad()
        model.training_step(batch, 0).backward()
        optimizer.step()
    optimizer.eval()
    return model.layer.weight.detach()


def test_the_average_is_validated_and_left_at_the_end():
    weights = Weights()
    model, _ = fit([ScheduleFree(), weights], val_check_interval=10)
    sanity, *validated = weights.validated
    assert torch.equal(sanity, Model().layer.weight)
    for steps, weight in zip((10, 20, 30), validated, strict=True):
        assert torch.equal(weight, average(steps))
    torch.testing.assert_close(model.layer.weight.detach(), average(30))


def test_training_goes_on_from_the_very_same_bits_however_often_it_is_validated():
    often, never = Weights(), Weights()
    fit([ScheduleFree(), often], val_check_interval=1)
    fit([ScheduleFree(), never], limit_val_batches=0)
    assert all(torch.equal(a, b) for a, b in zip(often.trained, never.trained, strict=True))


def test_validation_outside_of_training_changes_nothing():
    callback = ScheduleFree()
    model, trainer = fit([callback])
    before = model.layer.weight.detach().clone()
    trainer.validate(model, DataLoader(DATA[:2]), verbose=False)
    assert torch.equal(model.layer.weight, before)


def test_an_optimizer_that_is_not_schedule_free_is_refused():
    with pytest.raises(ValueError, match=r"`ScheduleFree\(\)` needs an optimizer with .*, got AdamW"):
        fit([ScheduleFree()], Model(torch.optim.AdamW))
