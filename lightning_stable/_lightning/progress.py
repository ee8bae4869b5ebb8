# SPDX-License-Identifier: Apache-2.0
"""Lightning's counters: the model's position is saved and put back, the position in the data is rewound."""

from typing import Any

from lightning.pytorch import Trainer

from lightning_stable._lightning.accumulation import counts_windows

ModelProgress = list[dict[str, int]]
DataProgress = list[dict[str, int]]


def model_progress(trainer: Trainer) -> ModelProgress:
    """A copy of the counters of optimizer and scheduler steps (`global_step` is one of them)."""
    return [dict(vars(tracker)) for tracker in _model_trackers(trainer)]


def restore_model_progress(trainer: Trainer, progress: ModelProgress) -> None:
    """Put the counters of optimizer and scheduler steps back."""
    for tracker, numbers in zip(_model_trackers(trainer), progress, strict=True):
        vars(tracker).update(numbers)


def _model_trackers(trainer: Trainer) -> list[Any]:
    loop = trainer.fit_loop.epoch_loop
    automatic = loop.automatic_optimization.optim_progress.optimizer
    manual = loop.manual_optimization.optim_step_progress
    schedulers = loop.scheduler_progress
    return [
        tracker
        for progress in (automatic.step, automatic.zero_grad, manual, schedulers)
        for tracker in (progress.total, progress.current)
    ]


def data_progress(trainer: Trainer) -> DataProgress:
    """A copy of the counters of batches."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    return [dict(vars(tracker)) for tracker in (progress.total, progress.current)]


def restore_data_progress(trainer: Trainer, saved: DataProgress) -> None:
    """Put the counters of batches back to where the epoch was not over."""
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for tracker, numbers in zip((progress.total, progress.current), saved, strict=True):
        vars(tracker).update(numbers)
    progress.is_last_batch = False


def rewind_batches(trainer: Trainer, count: int) -> None:
    """Let the loop number the next `count` batches again.

    To be called in `on_train_batch_end`, which runs before Lightning counts the batch as completed: all counters are
    lowered alike, and the one increment that is to come keeps them in step.
    """
    _pass_over(trainer, -count)
    trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = False


def end_epoch_at(trainer: Trainer, shortfall: int) -> None:
    """Number the last batch of an epoch `shortfall` higher, which is where Lightning expects the epoch to end."""
    _pass_over(trainer, shortfall)


def epoch_goes_on(trainer: Trainer) -> None:
    """Let a resumed epoch go on with the batch that was under way, also if it is the last one."""
    trainer.fit_loop.epoch_loop.batch_progress.is_last_batch = False


def _pass_over(trainer: Trainer, count: int) -> None:
    progress = trainer.fit_loop.epoch_loop.batch_progress
    for tracker in (progress.total, progress.current):
        for name in vars(tracker):
            setattr(tracker, name, getattr(tracker, name) + count)


def begin_epoch(trainer: Trainer) -> None:
    """Number the next batch as an epoch's first.

    Lightning does so itself, but for a checkpoint of an epoch's last batch where nobody knows how many there are.
    """
    trainer.fit_loop.epoch_loop.batch_progress.reset_on_run()


def batches_beyond_a_window(trainer: Trainer, count: int) -> int:
    """How far into an accumulation window the loop would be, had it begun `count` batches less."""
    if counts_windows(trainer):
        return 0  # however they are numbered
    return (trainer.fit_loop.epoch_loop.batch_progress.current.ready - count) % trainer.accumulate_grad_batches


def skip_next_validation(trainer: Trainer) -> None:
    """Leave out the validation that Lightning would run after this batch."""
    trainer.fit_loop.epoch_loop._skip_next_val = True


def batches_into_epoch(trainer: Trainer) -> int:
    """How many batches of the current epoch have been processed, as a checkpoint written now would know it."""
    return vars(trainer.fit_loop.epoch_loop.batch_progress.current)["processed"]


def batches_completed(trainer: Trainer) -> int:
    """How many batches of the current epoch came before the one under way, from its transfer to its last hook."""
    return trainer.fit_loop.epoch_loop.batch_progress.current.completed


def is_between_batches(trainer: Trainer) -> bool:
    """Whether no batch of the epoch is under way: every one that was begun has been processed."""
    current = trainer.fit_loop.epoch_loop.batch_progress.current
    return current.ready == vars(current)["processed"]


def has_begun(trainer: Trainer) -> bool:
    """Whether any batch was trained on, also before a resume once its counters are back."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready > 0


def batches_begun(trainer: Trainer) -> int:
    """How many batches the run has begun to train on; it goes back when batches are replayed."""
    return trainer.fit_loop.epoch_loop.batch_progress.total.ready


def batches_left(trainer: Trainer) -> float:
    """How many batches of the epoch follow the one that was just processed; infinite where nobody knows."""
    if is_last_batch(trainer):
        return 0
    return trainer.num_training_batches - trainer.fit_loop.epoch_loop.batch_progress.current.ready


def is_last_batch(trainer: Trainer) -> bool:
    """Whether the batch that was just processed is the last one of its epoch."""
    return trainer.fit_loop.epoch_loop._num_ready_batches_reached()


def is_epoch_used_up(trainer: Trainer) -> bool:
    """Whether the last batch of the epoch was processed, and not only begun."""
    return is_last_batch(trainer) and is_between_batches(trainer)


def is_accumulating(trainer: Trainer) -> bool:
    """Whether the optimizer has still to wait for more micro-batches."""
    return trainer.fit_loop.epoch_loop._should_accumulate()


def step_epoch_schedulers(trainer: Trainer) -> None:
    """Step the schedulers of interval "epoch" as Lightning does after the last batch."""
    trainer.fit_loop.epoch_loop.update_lr_schedulers("epoch", update_plateau_schedulers=False)


def skip_next_plateau_step(trainer: Trainer) -> None:
    """Leave out the step of `ReduceLROnPlateau` at the end of this batch; it comes after every hook of the batch."""
    loop = trainer.fit_loop.epoch_loop

    def update_others(interval: str, update_plateau_schedulers: bool) -> None:
        if interval == "step" and update_plateau_schedulers:
            keep_next_plateau_step(trainer)
        else:
            type(loop).update_lr_schedulers(loop, interval, update_plateau_schedulers)

    loop.update_lr_schedulers = update_others


def keep_next_plateau_step(trainer: Trainer) -> None:
    """Undo `skip_next_plateau_step`."""
    vars(trainer.fit_loop.epoch_loop).pop("update_lr_schedulers", None)


def should_stop(trainer: Trainer) -> bool:
    """Whether somebody has asked the trainer to stop."""
    return trainer.should_stop
