# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

from lightning_stable.callbacks.batches.schedule_increments import (
    counting_schedules,
    set_increments,
    step_others_again,
)


def config(interval="step", reduce_on_plateau=False, **attributes):
    scheduler = SimpleNamespace(**attributes)
    return SimpleNamespace(scheduler=scheduler, interval=interval, reduce_on_plateau=reduce_on_plateau)


def trainer_with(*configs):
    stepped = []
    module = SimpleNamespace(lr_scheduler_step=lambda scheduler, metric: stepped.append((scheduler, metric)))
    return SimpleNamespace(lr_scheduler_configs=list(configs), lightning_module=module), stepped


def test_only_schedules_of_the_unit_that_are_stepped_with_the_optimizer_are_told():
    samples, tokens = config(unit="samples", increment=1), config(unit="tokens", increment=1)
    later, other = config("epoch", unit="samples", increment=1), config(last_epoch=0)
    trainer, _ = trainer_with(samples, tokens, later, other)
    assert counting_schedules(trainer, "samples") == [samples.scheduler]
    set_increments(trainer, "samples", 32)
    assert [one.scheduler.increment for one in (samples, tokens, later)] == [32, 1, 1]
    assert not hasattr(other.scheduler, "increment")


def test_only_schedules_that_count_their_calls_are_called_again():
    other = config(last_epoch=0)
    trainer, stepped = trainer_with(
        config(unit="steps", increment=1), config("epoch", last_epoch=0), config(reduce_on_plateau=True), other
    )
    step_others_again(trainer, 3)
    assert stepped == [(other.scheduler, None)] * 3
    step_others_again(trainer, 0)
    assert len(stepped) == 3
