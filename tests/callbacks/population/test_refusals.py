# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch

from lightning_stable.callbacks.population.refusals import refuse_schedules, refuse_trainer
from tests.callbacks.populations import Net, fit, pbt


class ByHand(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class ByEpoch(Net):
    def __init__(self, kind=torch.optim.lr_scheduler.ExponentialLR, **options):
        super().__init__()
        self.of_epoch, self.options = kind, options or {"gamma": 0.5}

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.01)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": self.of_epoch(optimizer, **self.options), "monitor": "val_loss"},
        }


def test_manual_optimization_is_refused():
    with pytest.raises(RuntimeError, match="with manual optimization only the module knows"):
        fit(pbt(), ByHand())


def test_several_processes_and_strategies_that_step_by_themselves_are_refused():
    module = SimpleNamespace(automatic_optimization=True)
    with pytest.raises(RuntimeError, match=r"there are 2 processes.*--engine ray"):
        refuse_trainer(SimpleNamespace(world_size=2), module, pbt())
    strategy = SimpleNamespace(handles_gradient_accumulation=True)
    with pytest.raises(RuntimeError, match="steps by itself"):
        refuse_trainer(SimpleNamespace(world_size=1, strategy=strategy), module, pbt())


def test_a_schedule_of_epochs_needs_turns_of_epochs():
    with pytest.raises(ValueError, match=r"`ExponentialLR` steps at the end of an epoch \(of 50 optimizer steps\)"):
        fit(pbt(interval=20), ByEpoch())
    with pytest.raises(ValueError, match="`ReduceLROnPlateau` steps at the end of an epoch"):
        fit(pbt(interval=20), ByEpoch(torch.optim.lr_scheduler.ReduceLROnPlateau, patience=1))
    search = pbt(population=2, interval=50, initial=[{"lr": 0.01}, {"lr": 0.02}])
    model, _ = fit(search, ByEpoch(), max_steps=250)
    assert model.seen[100][1] == pytest.approx(0.005)  # the first member's second turn


def test_a_schedule_that_is_longer_than_a_member_lives_is_warned_of():
    schedule = SimpleNamespace(interval="step", scheduler=SimpleNamespace(total_steps=40))
    trainer = SimpleNamespace(
        num_training_batches=10,
        accumulate_grad_batches=1,
        estimated_stepping_batches=40,
        lr_scheduler_configs=[schedule],
    )
    with pytest.warns(
        UserWarning, match=r"total_steps=40\)` is longer than the 10 optimizer steps.*Set `total_steps=10`"
    ):
        refuse_schedules(trainer, population=4, interval=5)
    schedule.scheduler.total_steps = 10
    refuse_schedules(trainer, population=4, interval=5)
    trainer.estimated_stepping_batches = float("inf")
    schedule.scheduler.total_steps = 10_000
    refuse_schedules(trainer, population=4, interval=5)
