# SPDX-License-Identifier: Apache-2.0
"""Small networks, and fits of them that a range test is in."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_stable.callbacks import LRRangeTest

DATA = torch.randn(40, 4, generator=torch.Generator().manual_seed(3))
SHORT = {"min_lr": 1e-3, "max_lr": 1e3, "steps": 13}


class Quadratic(LightningModule):
    """Half of the sum of eigenvalue times x squared, whatever the batch."""

    def __init__(self, eigenvalues, start):
        super().__init__()
        self.x = torch.nn.Parameter(start.clone())
        self.register_buffer("eigenvalues", eigenvalues)

    def training_step(self, batch, batch_idx):
        return (self.eigenvalues * self.x.square()).sum() / 2

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


class Net(LightningModule):
    def __init__(self, kind=torch.optim.SGD, schedule=None, loss=None, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 3))
        self.kind, self.schedule, self.loss, self.settings = kind, schedule, loss, {"lr": 0.1, **settings}

    def training_step(self, batch, batch_idx):
        loss = torch.nn.functional.cross_entropy(self.net(batch), batch[:, :3].argmax(1))
        return loss if self.loss is None else self.loss(loss)

    def configure_optimizers(self):
        optimizer = self.kind(self.parameters(), **self.settings)
        if self.schedule is None:
            return optimizer
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": self.schedule(optimizer), "interval": "step"}}


def trainer_with(*callbacks, **settings):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    return Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "max_steps": 2,
            "callbacks": list(callbacks),
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            **quiet,
            **settings,
        }
    )


def fit(model, *callbacks, data=DATA, ckpt_path=None, **settings):
    trainer = trainer_with(*callbacks, **settings)
    trainer.fit(model, DataLoader(data, batch_size=8), ckpt_path=ckpt_path)
    return trainer


def result_of(model, **arguments):
    callback = LRRangeTest(**arguments)
    fit(model, callback)
    return callback.result
