# SPDX-License-Identifier: Apache-2.0
"""Attributes that Lightning's connectors hang on the Trainer, where a type checker does not find them."""

from typing import Any

from lightning.pytorch import Callback, Trainer
from torch.optim import Optimizer


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The trainer's callbacks, in the order of their hooks."""
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]


def log_every_n_steps(trainer: Trainer) -> int:
    """How often Lightning logs, in optimizer steps; 0 is never."""
    return trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]


def optimizer_steps_of_the_run(trainer: Trainer) -> int | float:
    """`trainer.estimated_stepping_batches`, which can be asked for while a run resumes, too."""
    steps = trainer.estimated_stepping_batches
    _make_loaders_again_in_a_resume(trainer)
    return steps


def batches_of_an_epoch(trainer: Trainer) -> int | float:
    """How many batches a rank sees in an epoch, infinity if nobody knows; to be asked for while a run resumes, too."""
    if trainer.limit_train_batches == 0:
        return 0  # Lightning does not even look at the loader
    if trainer.train_dataloader is None:
        trainer.fit_loop.setup_data()
    batches = trainer.num_training_batches
    _make_loaders_again_in_a_resume(trainer)
    return batches


def _make_loaders_again_in_a_resume(trainer: Trainer) -> None:
    """Let Lightning ask for the training loaders once more.

    It has made them to say how long the run is. In a resumed run that is before the counters are back, and it would
    keep these loaders without ever giving them the state the checkpoint holds.
    """
    if trainer._checkpoint_connector._loaded_checkpoint:
        trainer.fit_loop._combined_loader = None


def gradient_scaler(trainer: Trainer) -> Any:
    """The enabled gradient scaler of mixed precision in 16 bits, or `None`."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None


def gradient_scale(trainer: Trainer, optimizer: Optimizer) -> float:
    """What the gradients are still multiplied by: optimizers that unscale by themselves get them scaled."""
    scaler = gradient_scaler(trainer)
    unscales_itself = getattr(optimizer, "_step_supports_amp_scaling", False)
    return float(scaler.get_scale()) if scaler is not None and unscales_itself else 1.0
