# SPDX-License-Identifier: Apache-2.0
"""What every monitor shares: when it measures, that it changes nothing, and where its numbers go."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities.seed import isolate_rng

from lightning_stable._lightning.loggers import log_scalars
from lightning_stable._lightning.progress import is_accumulating


class Monitor(Callback, ABC):
    """Measures at every n-th optimizer step of training and sends the numbers to whatever loggers there are.

        step s is measured  <=>  s // every_n_steps > t // every_n_steps,  t: the step before, -1 at the start

    Steps are those of `trainer.global_step`, so 0, n, 2n, ... with one optimizer. Of a step that accumulates gradients
    the last micro-batch is measured. A step that is vetoed and tried again is measured the first time only; after a
    rollback the count goes on from where the run went back to. Nothing is measured in validation, in the sanity check,
    or when a run is resumed between two measured steps.

    Numbers go to all loggers at once, at the step Lightning would log at now, and into `trainer.callback_metrics`,
    also without a logger. Every rank measures its own share of the batch; rank zero's numbers are what is logged.

    A monitor changes no weight, gradient, buffer, metric or random number, and on steps that are not measured it does
    nothing but compare two integers. A subclass has `measure`, where needed `begin`, `end` and `draw`, and, if its
    numbers are known before the end of the batch, a hook that calls `report`.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next.

    Raises:
        ValueError: If `every_n_steps` is less than 1.

    Example:
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> class WeightNorm(Monitor):
        ...     def measure(self, trainer, pl_module):
        ...         return {"stability/weight_norm": pl_module.layer.weight.norm()}
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(accelerator="cpu", callbacks=[WeightNorm(every_n_steps=10)], **quiet)
    """

    def __init__(self, every_n_steps: int) -> None:
        super().__init__()
        if every_n_steps < 1:
            raise ValueError(f"`{type(self).__name__}(every_n_steps=...)` must be at least 1, got {every_n_steps}.")
        self.every_n_steps = every_n_steps
        self.measuring = False
        self._previous_step = -1

    @abstractmethod
    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, torch.Tensor]:
        """Return scalars by key, `stability/<what>/<where>`; runs without gradients, random numbers are put back."""

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Get ready, before the forward pass of a measured step. Nothing by default."""

    def end(self) -> None:
        """Undo `begin`, whatever happened; may be called when there is nothing to undo. Nothing by default."""

    def draw(self, trainer: Trainer) -> None:
        """Log histograms and figures of what was measured, where a logger can show them. Nothing by default."""

    def report(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure and log, once in a measured step."""
        if not self.measuring:
            return
        self._stop()
        with isolate_rng(), torch.no_grad():
            if scalars := self.measure(trainer, pl_module):
                log_scalars(trainer, scalars)
                self.draw(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take up the count where the run begins."""
        self._previous_step = trainer.global_step - 1

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Decide whether this step is measured."""
        if self.measuring:  # the last step was cut short, and somebody has caught the exception
            self._stop()
        if is_accumulating(trainer):
            return
        step, previous = trainer.global_step, self._previous_step
        self._previous_step = step
        self.measuring = step // self.every_n_steps > previous // self.every_n_steps
        if self.measuring:
            self.begin(trainer, pl_module)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Report what has not been reported yet."""
        self.report(trainer, pl_module)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give up a step that was begun and left out: a module's `on_train_batch_start` may end the epoch."""
        self._stop()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give up the step."""
        self._stop()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give up the step."""
        self._stop()

    def _stop(self) -> None:
        self.measuring = False
        self.end()
