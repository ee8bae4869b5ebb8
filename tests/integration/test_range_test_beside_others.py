# SPDX-License-Identifier: Apache-2.0
"""A range test beside a data module, records of a user's own, and callbacks that change steps."""

import numpy as np
import pytest
import torch
from lightning.pytorch import LightningDataModule
from torch.utils.data import DataLoader

from lightning_stable.callbacks import AdaptiveBatchSize, LRRangeTest, TrainingBudget
from tests.callbacks.range_test.ranged_runs import DATA, SHORT, Net, fit, trainer_with


class Meter:
    def __init__(self):
        self.count = 0


class Records(Net):
    """Keeps what it has seen in containers and objects of its own."""

    def __init__(self):
        super().__init__()
        self.history, self.meter = {"loss": []}, Meter()

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.history["loss"].append(loss.item())
        self.meter.count += 1
        return loss


class Noisy(LightningDataModule):
    """Draws from a generator of its own for every batch."""

    def __init__(self):
        super().__init__()
        self.generator, self.table = np.random.default_rng(0), {"sizes": []}

    def train_dataloader(self):
        return DataLoader(DATA, batch_size=8, collate_fn=self.collate)

    def collate(self, rows):
        self.table["sizes"].append(len(rows))
        return torch.stack(rows) + float(self.generator.normal())


def test_a_data_module_and_what_the_module_has_recorded_are_as_without_a_test():
    found = []
    for callbacks in ([], [LRRangeTest(**SHORT)]):
        model, data = Records(), Noisy()
        trainer_with(*callbacks, max_steps=4).fit(model, data)
        weights = [parameter.tolist() for parameter in model.parameters()]
        found.append([weights, model.history, model.meter.count, data.table, data.generator.bit_generator.state])
    assert found[1] == found[0]
    assert found[1][2] == 4


@pytest.mark.parametrize("accumulate", [1, 3])
@pytest.mark.parametrize("order", [1, -1], ids=["before", "behind"])
def test_a_batch_that_may_grow_does_not_change_what_is_found(order, accumulate):
    alone, beside = LRRangeTest(**SHORT), LRRangeTest(**SHORT)
    fit(Net(), alone, max_steps=1, accumulate_grad_batches=accumulate)
    grown, grown_alone = Net(), Net()
    fit(grown_alone, AdaptiveBatchSize(), max_steps=3, accumulate_grad_batches=accumulate)
    fit(grown, *[beside, AdaptiveBatchSize()][::order], max_steps=3, accumulate_grad_batches=accumulate)
    assert beside.result == alone.result
    assert all(torch.equal(*pair) for pair in zip(grown.parameters(), grown_alone.parameters(), strict=True))


@pytest.mark.parametrize("make", [lambda: TrainingBudget(4), AdaptiveBatchSize], ids=["budget", "batch size"])
def test_a_rate_is_applied_behind_what_keeps_a_state_but_no_rates(make):
    test = LRRangeTest(apply="min_lr", **SHORT)
    trainer = fit(Net(), make(), test, max_steps=2)
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(test.result.min_lr)
