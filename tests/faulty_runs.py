# SPDX-License-Identifier: Apache-2.0
"""One small run with everything in it that a spike can spoil, and a word-for-word comparison of two runs."""

import copy
import random
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
import torchmetrics
from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_stable.testbeds import GPT


class Net(LightningModule):
    """BatchNorm, Dropout, a torchmetric, a non-persistent buffer, step and epoch schedulers."""

    def __init__(self, optimizer: Callable[[Any], torch.optim.Optimizer] | None = None, epoch_schedule: bool = False):
        super().__init__()
        self.make_optimizer = optimizer or (lambda parameters: torch.optim.AdamW(parameters, lr=1e-2))
        self.epoch_schedule = epoch_schedule
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.3), nn.Linear(16, 1))
        self.mean_loss = torchmetrics.MeanMetric(nan_strategy="disable")
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.val_losses: list[torch.Tensor] = []

    def forward(self, x):
        return self.layers(x)

    def training_step(self, batch, batch_idx):
        self.seen += 1
        loss = nn.functional.mse_loss(self(batch["x"]), batch["y"])
        self.mean_loss(loss)
        self.log("train_loss", loss, on_step=True, on_epoch=True)
        self.log("train_metric", self.mean_loss, on_step=False, on_epoch=True)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = nn.functional.mse_loss(self(batch["x"]), batch["y"])
        self.val_losses.append(loss)
        self.log("val_loss", loss)

    def configure_optimizers(self):
        optimizer = self.make_optimizer(self.parameters())
        if self.epoch_schedule:
            return [optimizer], [torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5)]
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1.0 + 0.1 * step))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class ManualNet(Net):
    """The same by hand."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        loss = super().training_step(batch, batch_idx)
        optimizer.zero_grad()
        self.manual_backward(loss)
        optimizer.step()
        schedule.step()


class TextNet(LightningModule):
    """A GPT with dropout on random tokens; a bad batch scales its embeddings by NaN."""

    def __init__(self):
        super().__init__()
        self.gpt = GPT(vocab_size=16, n_layer=2, n_head=2, d_model=16, context=8, dropout=0.2)
        self.val_losses: list[torch.Tensor] = []

    def loss(self, batch):
        logits = self.gpt(batch["tokens"], batch["scale"])
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["tokens"].flatten())

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.log("train_loss", loss, on_step=True, on_epoch=True, batch_size=4)
        return loss

    def validation_step(self, batch, batch_idx):
        loss = self.loss(batch)
        self.val_losses.append(loss)
        self.log("val_loss", loss, batch_size=4)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=1e-2, total_steps=200)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


def make_batches(count, bad=(), how="nan", kind="net"):
    """`count` batches, the same for the same index whatever is bad; `bad` ones are spoilt."""
    generator = torch.Generator().manual_seed(1234)
    batches = []
    for index in range(count):
        if kind == "text":
            batch = {"tokens": torch.randint(16, (4, 8), generator=generator), "scale": torch.ones(4)}
        else:
            batch = {"x": torch.randn(4, 8, generator=generator), "y": torch.randn(4, 1, generator=generator)}
        if index in bad:
            key = "scale" if kind == "text" else "y" if how == "huge" else "x"
            batch[key] = batch[key] * (float("nan") if how == "nan" else 1e4)
        batches.append(batch)
    return batches


class Batches(torch.utils.data.Dataset):
    """Ready-made batches as a map-style dataset."""

    def __init__(self, batches):
        self.batches = batches

    def __len__(self):
        return len(self.batches)

    def __getitem__(self, index):
        if index >= len(self.batches):
            raise IndexError(index)
        return {key: value.clone() for key, value in self.batches[index].items()}


@dataclass
class Outcome:
    """All that must be equal between two runs."""

    weights: dict[str, torch.Tensor]
    buffers: list[torch.Tensor]
    optimizers: list[Any]
    schedules: list[Any]
    global_step: int
    metrics: dict[str, torch.Tensor]
    val_losses: list[torch.Tensor]
    random: tuple[Any, ...]
    scaler: dict[str, Any] = field(default_factory=dict)
    trainer: Trainer | None = None


def run(batches, callbacks=(), **arguments) -> Outcome:
    """Train on `batches` and return everything that must be equal; what the run writes is gone after it."""
    with tempfile.TemporaryDirectory() as folder:
        return _run(batches, callbacks, **{"default_root_dir": folder, **arguments})


def _run(
    batches,
    callbacks,
    model: Callable[[], LightningModule] = Net,
    epochs=2,
    num_workers=0,
    shuffle=False,
    ckpt_path=None,
    dataset=None,
    loaders=None,
    fit=Trainer.fit,
    after=lambda trainer: None,
    **trainer_arguments,
) -> Outcome:
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    module = model()
    arguments = {
        "accelerator": "cpu",
        "devices": 1,
        "max_epochs": epochs,
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
        "num_sanity_val_steps": 0,
        "log_every_n_steps": 1,
        **trainer_arguments,
    }
    trainer = Trainer(callbacks=list(callbacks), **arguments)
    torch.manual_seed(1)
    kind = "text" if isinstance(module, TextNet) else "net"
    data = (dataset or Batches)(batches)
    loader = DataLoader(data, batch_size=None, num_workers=num_workers, shuffle=shuffle, persistent_workers=False)
    if loaders is not None:
        loader = loaders(batches)
    validation = DataLoader(Batches(make_batches(3, kind=kind)), batch_size=None)
    fit(trainer, module, loader, validation, ckpt_path=ckpt_path)
    after(trainer)
    optimizers = module.optimizers()
    optimizers = optimizers if isinstance(optimizers, list) else [optimizers]
    return Outcome(
        weights={name: value.detach().clone() for name, value in module.named_parameters()},
        buffers=[buffer.clone() for buffer in module.buffers()],
        optimizers=[copy.deepcopy(optimizer.optimizer.state_dict()) for optimizer in optimizers],
        schedules=[
            {k: v for k, v in config.scheduler.state_dict().items() if k != "lr_lambdas"}
            for config in trainer.lr_scheduler_configs
        ],
        global_step=trainer.global_step,
        metrics={
            k: v for k, v in trainer.callback_metrics.items() if not k.startswith("stability/") and "step" not in k
        },
        val_losses=list(getattr(module, "val_losses", [])),
        random=(torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()),
        scaler=trainer.precision_plugin.state_dict(),
        trainer=trainer,
    )


def assert_same(actual: Any, expected: Any, path: str = "outcome") -> None:
    """Equal to the last bit, all the way down; says where it is not."""
    if isinstance(expected, torch.Tensor):
        assert torch.equal(actual, expected), f"{path}: {actual} is not {expected}"
    elif isinstance(expected, dict):
        assert actual.keys() == expected.keys(), f"{path}: {actual.keys()} are not {expected.keys()}"
        for key in expected:
            assert_same(actual[key], expected[key], f"{path}.{key}")
    elif isinstance(expected, list | tuple):
        assert len(actual) == len(expected), f"{path}: {len(actual)} items are not {len(expected)}"
        for index, (one, other) in enumerate(zip(actual, expected, strict=True)):
            assert_same(one, other, f"{path}[{index}]")
    elif isinstance(expected, Outcome):
        for name in vars(expected):
            if name != "trainer":
                assert_same(getattr(actual, name), getattr(expected, name), f"{path}.{name}")
    else:
        assert actual == expected, f"{path}: {actual} is not {expected}"
