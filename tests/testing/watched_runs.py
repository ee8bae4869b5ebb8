# SPDX-License-Identifier: Apache-2.0
"""Runs whose every batch is looked at, as a guard would look at it."""

import math

import torch
from lightning.pytorch import Callback
from torch import nn

from tests.faulty_runs import ManualNet, Net, make_batches, run


class Watch(Callback):
    """Notes for every batch the loss before backward, the gradients before the step, and what comes out."""

    def __init__(self):
        self.losses, self.outputs, self.gradients, self.scales, self.rates = [], [], [], [], []

    def on_before_backward(self, trainer, pl_module, loss):
        self.losses.append(float(loss.detach()))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = {name: p.grad.detach().clone() for name, p in pl_module.named_parameters() if p.grad is not None}
        self.gradients.append(gradients)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.outputs.append(float(outputs["loss"]) if outputs else math.nan)
        self.scales.append(trainer.precision_plugin.state_dict().get("scale"))

    def bad_gradients(self, name):
        """The steps in which the gradient of `name` was not finite."""
        return [step for step, found in enumerate(self.gradients) if not found[name].isfinite().all()]


class Labelled(Net):
    """Integer targets beside floating-point inputs, and a record of what it was given."""

    def __init__(self):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 5))
        self.batches = []

    def training_step(self, batch, batch_idx):
        self.batches.append({key: value.clone() for key, value in batch.items()})
        return nn.functional.cross_entropy(self(batch["x"]), batch["labels"])

    def validation_step(self, batch, batch_idx):
        return None


def labelled_batches(count):
    generator = torch.Generator().manual_seed(7)
    labels = [torch.randint(5, (16,), generator=generator) for _ in range(count)]
    return [
        {"x": torch.randn(16, 8, generator=generator), "labels": label, "mask": torch.ones(16, dtype=torch.bool)}
        for label in labels
    ]


def watched(*faults, count=12, before=False, **arguments):
    """A run with faults, the watch in front of them or behind; returns what the watch has seen and the outcome."""
    watch = Watch()
    callbacks = [watch, *faults] if before else [*faults, watch]
    return watch, run(make_batches(count), callbacks, **{"epochs": 1, **arguments})


__all__ = ["Labelled", "ManualNet", "Net", "Watch", "labelled_batches", "make_batches", "run", "watched"]
