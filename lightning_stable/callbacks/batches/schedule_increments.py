# SPDX-License-Identifier: Apache-2.0
"""Tell schedules how much an optimizer step has used, before Lightning steps them."""

from typing import Any, Protocol, cast

from lightning.pytorch import Trainer


class CountingSchedule(Protocol):
    """A schedule whose rate is a function of a position, which each of its steps moves on by an increment.

    `ProfileLR` is one.

    Example:
        >>> from types import SimpleNamespace
        >>> schedule = SimpleNamespace(unit="samples", position=64, increment=32, total_steps=None)
        >>> _counts(schedule, "samples"), _counts(schedule, "steps")
        (True, False)
    """

    unit: str
    position: float
    increment: float
    total_steps: float | None


def counting_schedules(trainer: Trainer, unit: str) -> list[CountingSchedule]:
    """Return the trainer's schedules that count in `unit` and are stepped after each optimizer step.

    Args:
        trainer: The trainer in its `fit`.
        unit: `"steps"`, `"samples"`, `"tokens"`, `"seconds"`, ...

    Example:
        >>> counting_schedules(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), "samples")
        []
    """
    schedules = [config.scheduler for config in trainer.lr_scheduler_configs if config.interval == "step"]
    return [cast(CountingSchedule, schedule) for schedule in schedules if _counts(schedule, unit)]


def set_increments(trainer: Trainer, unit: str, increment: float) -> None:
    """Let the next step of every schedule that counts in `unit` be one of `increment`.

    Example:
        >>> set_increments(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), "samples", 32)
    """
    for schedule in counting_schedules(trainer, unit):
        schedule.increment = increment


def step_others_again(trainer: Trainer, times: int) -> None:
    """Step the schedules of interval "step" that count calls so many times more.

    Example:
        >>> step_others_again(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), times=3)
    """
    for config in trainer.lr_scheduler_configs:
        is_counting = hasattr(config.scheduler, "increment")
        if is_counting or config.reduce_on_plateau or config.interval != "step":
            continue
        for _ in range(times):
            trainer.lightning_module.lr_scheduler_step(config.scheduler, None)


def _counts(schedule: Any, unit: str) -> bool:
    return getattr(schedule, "unit", None) == unit and hasattr(schedule, "increment")
