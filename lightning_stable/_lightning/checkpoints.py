# SPDX-License-Identifier: Apache-2.0
"""Keep `ModelCheckpoint` from writing a step twice when the guard goes back over it."""

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint


def mark_saved(trainer: Trainer) -> list[int]:
    """Make every `ModelCheckpoint` believe that the current step is saved; returns what they believed before."""
    before = []
    for callback in _model_checkpoints(trainer):
        before.append(callback._last_global_step_saved)
        callback._last_global_step_saved = trainer.global_step
    return before


def unmark_saved(trainer: Trainer, before: list[int]) -> None:
    """Put back what `mark_saved` returned."""
    for callback, step in zip(_model_checkpoints(trainer), before, strict=True):
        callback._last_global_step_saved = step


def _model_checkpoints(trainer: Trainer) -> list[ModelCheckpoint]:
    return [callback for callback in trainer.checkpoint_callbacks if isinstance(callback, ModelCheckpoint)]
