# SPDX-License-Identifier: Apache-2.0
"""What `assert_recovers` sees of a run, step by step."""

from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable._lightning import progress
from lightning_stable._lightning.loggers import logging_step
from lightning_stable._lightning.trainer import gradient_scaler


@dataclass(frozen=True)
class StepRecord:
    """One optimizer step that was tried.

    Args:
        loss: Mean over its batches; NaN if there was none.
        has_finite_loss: Whether the losses of all its batches were finite.
        has_finite_gradient: Whether all gradients were, right before the step.
        is_left_to_scaler: Whether a gradient scaler with a scale above 1 was there to skip an overflow.
        has_stepped: Whether an optimizer was about to step at all.

    Example:
        >>> StepRecord(2.5, True, False, is_left_to_scaler=True, has_stepped=True).is_spike
        False
    """

    loss: float
    has_finite_loss: bool
    has_finite_gradient: bool
    is_left_to_scaler: bool
    has_stepped: bool

    @property
    def is_overflow(self) -> bool:
        """Whether it is the scaler's to skip: the gradients are not finite, and the loss is."""
        return self.is_left_to_scaler and self.has_finite_loss and not self.has_finite_gradient

    @property
    def is_spike(self) -> bool:
        """Whether loss or gradient are not finite, and it is not the scaler's to skip."""
        return self.has_stepped and not (self.has_finite_loss and self.has_finite_gradient) and not self.is_overflow


class RunRecord(Callback):
    """Notes of every step whether loss and gradients were finite; it changes nothing.

    Example:
        >>> RunRecord().steps
        {}
    """

    def __init__(self) -> None:
        super().__init__()
        self.steps: dict[int, StepRecord] = {}  # by the loggers' x axis
        self._losses: list[Tensor] = []
        self._gradients_are_finite: list[bool] = []
        self._scale = 1.0

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Take the loss."""
        self._losses.append(loss.detach())

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Look at the gradients."""
        scaler = gradient_scaler(trainer)
        self._scale = 1.0 if scaler is None else float(scaler.get_scale())
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        self._gradients_are_finite.append(all(bool(gradient.isfinite().all()) for gradient in gradients))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the step."""
        if pl_module.automatic_optimization and progress.is_accumulating(trainer):
            return
        accumulated = trainer.accumulate_grad_batches if pl_module.automatic_optimization else 1
        losses = torch.stack([loss.float().mean().cpu() for loss in self._losses]) if self._losses else torch.zeros(0)
        self.steps[logging_step(trainer)] = StepRecord(
            loss=float(losses.mean()) * accumulated / self._scale,
            has_finite_loss=bool(losses.isfinite().all()),
            has_finite_gradient=all(self._gradients_are_finite),
            is_left_to_scaler=self._scale > 1.0,
            has_stepped=bool(self._gradients_are_finite),
        )
        self._losses, self._gradients_are_finite = [], []
