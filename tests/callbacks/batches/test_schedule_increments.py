# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import pytest
import torch

from lightning_stable.callbacks.batches.schedule_increments import profile_schedules, set_increments, step_others_again
from lightning_stable.schedules import ProfileLR


def config(interval="step", reduce_on_plateau=False, unit=None, **settings):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
    scheduler = torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.9)
    if unit is not None:
        scheduler = ProfileLR(optimizer, "Linear", total_steps=100, unit=unit, **settings)
    return SimpleNamespace(scheduler=scheduler, interval=interval, reduce_on_plateau=reduce_on_plateau)


def trainer_with(*configs):
    stepped = []
    module = SimpleNamespace(lr_scheduler_step=lambda scheduler, metric: stepped.append((scheduler, metric)))
    return SimpleNamespace(lr_scheduler_configs=list(configs), lightning_module=module), stepped


def test_only_schedules_of_the_unit_that_are_stepped_with_the_optimizer_are_told():
    samples, tokens, later, other = (
        config(unit="samples"),
        config(unit="tokens"),
        config("epoch", unit="samples"),
        config(),
    )
    trainer, _ = trainer_with(samples, tokens, later, other)
    assert profile_schedules(trainer, "samples") == [samples.scheduler]
    set_increments(trainer, "samples", 32)
    assert [one.scheduler.increment for one in (samples, tokens, later)] == [32, 1, 1]


def test_the_rate_of_the_first_step_of_a_warmup_is_that_of_its_end_and_later_ones_are_left_alone():
    schedule = config(unit="samples", warmup_steps=40).scheduler
    trainer, _ = trainer_with(SimpleNamespace(scheduler=schedule, interval="step", reduce_on_plateau=False))
    assert schedule.get_last_lr() == [1 / 40]
    set_increments(trainer, "samples", 10)
    assert schedule.get_last_lr() == [10 / 40]
    schedule.optimizer.step()
    schedule.step()
    assert schedule.get_last_lr() == [pytest.approx(20 / 40)]
    set_increments(trainer, "samples", 5)
    assert schedule.get_last_lr() == [pytest.approx(20 / 40)]
    assert schedule.optimizer.param_groups[0]["lr"] == schedule.get_last_lr()[0]


def test_only_schedules_that_count_their_calls_are_called_again():
    other = config()
    trainer, stepped = trainer_with(config(unit="steps"), config("epoch"), config(reduce_on_plateau=True), other)
    step_others_again(trainer, 3)
    assert stepped == [(other.scheduler, None)] * 3
    step_others_again(trainer, 0)
    assert len(stepped) == 3
