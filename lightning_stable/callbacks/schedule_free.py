# SPDX-License-Identifier: Apache-2.0
"""Validate the averaged weights of a schedule-free optimizer."""

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor


class ScheduleFree(Callback):
    """Puts the average that a schedule-free optimizer keeps into the model for validation, and at the end for good.

        training:     gradients are taken at y = (1 - beta1) z + beta1 x
        validation, and after the last step:   the model holds x, the running average of z

    Paper: Defazio et al., "The Road Less Scheduled" (NeurIPS 2024).

    Deviations: these optimizers turn x back into y by arithmetic, which rounds; here y is kept while the model is
    validated, so that training goes on from the very same bits, however often it is validated.

    It calls `train()` and `eval()` of every optimizer that has them, such as `pytorch_optimizer.ScheduleFreeAdamW` or
    those of the package `schedulefree`. Checkpoints written during training hold y, from which a run resumes exactly;
    to use the weights of one, `trainer.validate` will not do: call `optimizer.eval()` after loading both.

    Raises:
        ValueError: If no optimizer is schedule-free.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(callbacks=[ScheduleFree()], accelerator="cpu", **quiet)
    """

    def __init__(self) -> None:
        super().__init__()
        self._trained: list[tuple[Tensor, Tensor]] = []  # parameters, and what they hold in training

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make sure that training starts at y."""
        if not _schedule_free(trainer):
            names = ", ".join(type(optimizer).__name__ for optimizer in trainer.optimizers)
            raise ValueError(
                f"`ScheduleFree()` needs an optimizer with `train()` and `eval()`, such as "
                f"`pytorch_optimizer.ScheduleFreeAdamW`, got {names}."
            )
        for optimizer in _schedule_free(trainer):
            optimizer.train()

    @torch.no_grad()
    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Show x."""
        if trainer.sanity_checking or trainer.state.fn != "fit":
            return  # nothing has been averaged yet, or will be
        optimizers = _schedule_free(trainer)
        parameters = [p for optimizer in optimizers for group in optimizer.param_groups for p in group["params"]]
        self._trained = [(parameter, parameter.detach().clone()) for parameter in parameters]
        for optimizer in optimizers:
            optimizer.eval()

    @torch.no_grad()
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Go back to y, to the bit."""
        if not self._trained:
            return
        for optimizer in _schedule_free(trainer):
            optimizer.train()
        for parameter, value in self._trained:
            parameter.copy_(value)
        self._trained = []

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave x in the model."""
        for optimizer in _schedule_free(trainer):
            optimizer.eval()


def _schedule_free(trainer: Trainer) -> list[Any]:
    return [
        optimizer
        for optimizer in trainer.optimizers
        if callable(getattr(optimizer, "train", None)) and callable(getattr(optimizer, "eval", None))
    ]
