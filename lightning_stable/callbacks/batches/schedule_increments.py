# SPDX-License-Identifier: Apache-2.0
"""Tell schedules how much an optimizer step uses, before Lightning steps them."""

from lightning.pytorch import Trainer

from lightning_stable.schedules.profile_lr import ProfileLR


def profile_schedules(trainer: Trainer, unit: str) -> list[ProfileLR]:
    """Return the trainer's schedules that count in `unit` and are stepped after each optimizer step.

    Args:
        trainer: The trainer in its `fit`.
        unit: As in `ProfileLR`.

    Example:
        >>> profile_schedules(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), "samples")
        []
    """
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs if config.interval == "step"]
    return [schedule for schedule in schedules if isinstance(schedule, ProfileLR) and schedule.unit == unit]


def set_increments(trainer: Trainer, unit: str, increment: float) -> None:
    """Let the next step of every schedule that counts in `unit` be one of `increment`.

    Args:
        trainer: The trainer in its `fit`.
        unit: As in `ProfileLR`.
        increment: In that unit.

    Example:
        >>> set_increments(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), "samples", 32)
    """
    for schedule in profile_schedules(trainer, unit):
        set_increment(schedule, increment)


def set_increment(schedule: ProfileLR, increment: float) -> None:
    """Let the next step of a schedule be one of `increment`.

    To be called before the optimizer moves: in a warmup the rate of the first step depends on what it uses.

    Args:
        schedule: The schedule.
        increment: In its unit.

    Example:
        >>> import torch
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> schedule = ProfileLR(optimizer, total_steps=100, warmup_steps=40, unit="samples")
        >>> set_increment(schedule, 10)
        >>> schedule.get_last_lr()
        [0.25]
    """
    changes, schedule.increment = schedule.increment != increment, increment
    if changes and schedule.position == 0:
        schedule.jump(0)


def step_others_again(trainer: Trainer, times: int) -> None:
    """Step the schedules of interval "step" that count calls so many times more.

    Args:
        trainer: The trainer in its `fit`.
        times: How often.

    Example:
        >>> step_others_again(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), times=3)
    """
    for config in trainer.lr_scheduler_configs:
        if config.interval != "step" or config.reduce_on_plateau or isinstance(config.scheduler, ProfileLR):
            continue
        for _ in range(times):
            trainer.lightning_module.lr_scheduler_step(config.scheduler, None)
