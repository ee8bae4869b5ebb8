# SPDX-License-Identifier: Apache-2.0
"""A small population to be trained: weights that remember which batches they were trained on."""

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_stable.callbacks import PopulationBasedTraining


class Net(LightningModule):
    """BatchNorm, a step schedule, dropout if asked, and what it was trained with."""

    def __init__(self, dropout=0.0, schedule=True, kind=torch.optim.AdamW):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8), nn.Dropout(dropout), nn.Linear(8, 1))
        self.schedule, self.kind = schedule, kind
        self.scale = 1.0
        self.seen = []

    def training_step(self, batch, batch_idx):
        group = self.optimizers().optimizer.param_groups[0]
        self.seen.append((float(batch["index"][0]), group["lr"], self.scale))
        loss = self.scale * nn.functional.mse_loss(self.layers(batch["x"]), batch["y"])
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", nn.functional.mse_loss(self.layers(batch["x"]), batch["y"]))

    @torch.no_grad()
    def validation_loss(self, batch):
        self.eval()
        return nn.functional.mse_loss(self.layers(batch["x"]), batch["y"])

    def configure_optimizers(self):
        optimizer = self.kind(self.parameters(), lr=0.01)
        if not self.schedule:
            return optimizer
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1.0 + 0.1 * step))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def make_samples(count=200, first=0):
    generator = torch.Generator().manual_seed(7)
    x, y = torch.randn(count, 8, generator=generator), torch.randn(count, 1, generator=generator)
    return [{"x": x[i], "y": y[i], "index": torch.tensor(float(i))} for i in range(first, count)]


def samples_of(turns):
    """The batches of four samples of these turns of two steps."""
    return [sample for turn in turns for sample in make_samples()[8 * turn : 8 * turn + 8]]


class StatefulLoader(DataLoader):
    """Goes on where it was, as Lightning asks of loaders that are resumed in mid-epoch."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.used, self.begin_at = 0, 0

    def __iter__(self):
        begin_at, self.begin_at = self.begin_at, 0
        return self._from(begin_at, super().__iter__())  # which draws random numbers, now and not with the first batch

    def _from(self, begin_at, batches):
        for number, batch in enumerate(batches):
            if number >= begin_at:
                self.used = number + 1
                yield batch
        self.used = 0

    def state_dict(self):
        return {"used": self.used}

    def load_state_dict(self, state):
        self.begin_at = state["used"]


def fit(callback, model=None, ckpt_path=None, callbacks=(), samples=None, loader=None, **settings):
    model = model or Net()
    trainer = Trainer(
        **{
            "accelerator": "cpu",
            "devices": 1,
            "logger": False,
            "enable_checkpointing": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "num_sanity_val_steps": 0,
            "max_steps": 24,
            **settings,
        },
        callbacks=[callback, *callbacks] if callback is not None else list(callbacks),
    )
    samples = samples or make_samples()
    training = loader or StatefulLoader(samples, batch_size=4)
    trainer.fit(model, training, DataLoader(samples[:20], batch_size=10), ckpt_path=ckpt_path)
    return model, trainer


def pbt(**arguments):
    return PopulationBasedTraining(**{"search": {"lr": [1e-3, 0.1]}, "population": 3, "interval": 2, **arguments})


def weights(model):
    return [tensor.detach().clone() for tensor in (*model.parameters(), *model.buffers())]
