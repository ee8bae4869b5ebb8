# SPDX-License-Identifier: Apache-2.0
"""Runs whose gradients are Gaussian, with a mean and a variance that are known."""

import inspect
import math

import torch
from lightning.pytorch import Callback, LightningDataModule, LightningModule, Trainer
from lightning.pytorch.utilities.model_helpers import is_overridden
from torch.utils.data import DataLoader

from lightning_stable.callbacks import AdaptiveBatchSize
from lightning_stable.schedules import ProfileLR

ENTRIES, MEAN, VARIANCE = 64, 1.0, 40.0  # ||mu||, tr(Sigma)


def samples(count, seed=0, mean=MEAN, variance=VARIANCE):
    """The gradients of single samples."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(count, ENTRIES, generator=generator, dtype=torch.float64) * math.sqrt(variance / ENTRIES)
    return noise + mean / math.sqrt(ENTRIES)


class Noisy(LightningModule):
    """The gradient of a sample is the sample itself, whatever the weights are."""

    def __init__(self, schedule=None, lr=0.01):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.zeros(ENTRIES, dtype=torch.float64))
        self.schedule, self.lr = schedule, lr

    def training_step(self, batch, batch_idx):
        return (batch @ self.weight).mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=self.lr, momentum=0.9)
        if self.schedule is None:
            return optimizer
        return [optimizer], [{"scheduler": self.schedule(optimizer, self.trainer), "interval": "step"}]


class Probe(Callback):
    """What every step is made of."""

    def __init__(self):
        self.accumulated, self.gradients, self.rates, self.sizes, self.logged = [], [], [], [], {}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.sizes.append(len(batch))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.accumulated.append(trainer.accumulate_grad_batches)
        gradient = pl_module.weight.grad
        self.gradients.append(None if gradient is None else gradient.clone())
        self.rates.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        for name, value in trainer.callback_metrics.items():
            if name.startswith("stability/"):
                self.logged.setdefault(name, []).append(float(value))


def fit(*callbacks, data=None, model=None, batch_size=4, ckpt_path=None, loader=None, **settings):
    quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False, enable_model_summary=False)
    trainer = Trainer(
        accelerator="cpu", callbacks=list(callbacks), **{"devices": 1, "max_epochs": 1, **quiet, **settings}
    )
    model = model or Noisy()
    if loader is None and not is_overridden("train_dataloader", model):
        loader = DataLoader(samples(800) if data is None else data, batch_size=batch_size)
    trainer.fit(model, loader, ckpt_path=ckpt_path)
    return trainer


EAGER = {"every_n_steps": 1, "eta": 0.5}  # 160 samples are what theory asks for


def grown(batch_size=4, probe=None, **settings):
    """A run; which arguments are the callback's, its signature knows."""
    known = inspect.signature(AdaptiveBatchSize).parameters
    arguments = {name: settings.pop(name) for name in list(settings) if name in known}
    callback, probe = AdaptiveBatchSize(**{**EAGER, **arguments}), probe or Probe()
    trainer = fit(callback, probe, batch_size=batch_size, **settings)
    return callback, probe, trainer


def counting(optimizer, trainer):
    return ProfileLR(optimizer, "Linear", total_steps=trainer.estimated_stepping_batches)


def linear(optimizer, trainer):
    total = trainer.estimated_stepping_batches
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)


def one_cycle(optimizer, trainer):
    return torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=trainer.estimated_stepping_batches)


class Data(LightningDataModule):
    def __init__(self, batch_size=4, count=200, fixed=False, **settings):
        super().__init__()
        self.batch_size, self.data, self.fixed, self.settings = batch_size, samples(count), fixed, settings

    def train_dataloader(self):
        return DataLoader(self.data, batch_size=4 if self.fixed else self.batch_size, **self.settings)


def loader_grown(data, model=None, ckpt_path=None, max_epochs=6, probe=None, **settings):
    """As `grown`, with a loader that may become larger."""
    arguments = {"eta": 0.1, "max_accumulation": 2, "max_loader_batch_size": 35, **settings}
    return grown(loader=data, model=model, ckpt_path=ckpt_path, max_epochs=max_epochs, probe=probe, **arguments)
