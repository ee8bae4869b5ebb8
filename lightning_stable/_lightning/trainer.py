# SPDX-License-Identifier: Apache-2.0
"""Attributes that Lightning's connectors hang on the Trainer, where a type checker does not find them."""

from typing import Any

from lightning.pytorch import Callback, Trainer


def callbacks_of(trainer: Trainer) -> list[Callback]:
    """The trainer's callbacks, in the order of their hooks."""
    return trainer.callbacks  # pyright: ignore[reportAttributeAccessIssue]


def log_every_n_steps(trainer: Trainer) -> int:
    """How often Lightning logs, in optimizer steps; 0 is never."""
    return trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]


def gradient_scaler(trainer: Trainer) -> Any:
    """The enabled gradient scaler of mixed precision in 16 bits, or `None`."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return scaler if scaler is not None and scaler.is_enabled() else None
