# SPDX-License-Identifier: Apache-2.0
"""Optimizer steps that are taken to try something, and are undone."""

import math
from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable._lightning.accumulation import length_without_growth
from lightning_stable._lightning.progress import keep_next_plateau_step
from lightning_stable._lightning.repeated_step import run_again
from lightning_stable._lightning.trainer import gradient_scaler
from lightning_stable._lightning.training_data import LARGE, TrainingDataCopy
from lightning_stable.snapshots.plain_attributes import PlainAttributes, plain_attributes
from lightning_stable.snapshots.random_state import RandomState
from lightning_stable.snapshots.snapshot import Snapshot
from lightning_stable.snapshots.transfer import Transfer

Window = list[tuple[Any, int]]  # the batches of a step, with their indices

_MOST_WITHOUT_A_LOSS = 20  # windows in a row; a `training_step` may leave out losses that are not finite, without end
_OF_AN_OPTIMIZER = ("state", "param_groups")  # which the snapshot has


class TrialSteps:
    """Takes steps as the training loop does, from one start, as often as one likes; afterwards nothing has happened.

    Put back are parameters, buffers, gradients, optimizer, schedules, scaler, metrics, random numbers, counters, and
    the `PlainAttributes` of module, data module and optimizer. Batches come from copies of the loaders. No callback, no
    logger and no schedule is called.

    Args:
        trainer: In its `fit`, in front of the first step.
        pl_module: The module it trains.
        owner: The callback that takes them.

    Raises:
        ValueError: If the training data cannot be copied.

    Example:
        >>> TrialSteps.__name__  # needs a running fit; see `LRRangeTest`
        'TrialSteps'
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule, owner: Callback) -> None:
        self._trainer = trainer
        self._module = pl_module
        self.optimizer: Optimizer = trainer.optimizers[0]
        self.schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._data = TrainingDataCopy(trainer, asked_by=f"`{type(owner).__name__}`")
        self._attributes = [*plain_attributes(pl_module), PlainAttributes(self.optimizer, leave=_OF_AN_OPTIMIZER)]
        datamodule = getattr(trainer, "datamodule", None)
        if datamodule is not None:  # which the copies of the loaders share, for its `collate_fn` may need all of it
            self._attributes.append(PlainAttributes(datamodule, below=LARGE))
        self._gradients = [(parameter, parameter.grad) for parameter in pl_module.parameters()]
        self._snapshot = Snapshot(trainer, pl_module, owner, Transfer("host"), with_callbacks=False)
        self._snapshot.capture()
        self._snapshot.wait()
        self._found_length, self._length = trainer.accumulate_grad_batches, length_without_growth(trainer)
        self._batches: Iterator[Any] = iter(())
        self._count = 0

    def start_again(self) -> None:
        """Back to the start: the same state, the same random numbers, and the first batch."""
        self._go_back()
        self._trainer.accumulate_grad_batches = self._length
        self._drop_gradients()
        self._close()
        self._batches, self._count = self._data.from_the_beginning(), 0

    def put_back(self) -> None:
        """Leave everything as it was found."""
        self._close()
        self._go_back()
        self._trainer.accumulate_grad_batches = self._found_length
        for parameter, gradient in self._gradients:
            parameter.grad = gradient

    def take(self) -> float:
        """Take one step with the groups as they are now; returns the loss before it, the mean over all ranks.

        Batches that `training_step` returns None for are passed over. Where they are too many, the loss is NaN.
        """
        window: Window = []
        losses: list[float] = []
        randoms: list[RandomState] = []

        def forward_and_backward() -> Tensor:
            nonlocal window
            with torch.enable_grad():
                if losses:
                    loss = self._gradients_of(window)
                else:
                    window, loss = self._next_with_a_loss()
            losses.append(math.nan if loss is None else loss)
            if not randoms:
                randoms.append(RandomState())
            return torch.tensor(losses[-1])

        kind: Any = type(self.optimizer)  # whose `step` no gate, schedule or callback has replaced
        if gradient_scaler(self._trainer) is None:
            kind.step(self.optimizer, closure=forward_and_backward)
        else:
            forward_and_backward()
            kind.step(self.optimizer)
        randoms[0].restore()  # an optimizer that evaluates more often, or draws itself, shall not change what is next
        return losses[0]

    def look(self) -> float:
        """Forward and backward of a step that is not taken; returns the loss as `take` does."""
        _, loss = self._next_with_a_loss()
        return math.nan if loss is None else loss

    def _next_with_a_loss(self) -> tuple[Window, float | None]:
        """The next window that something is learned from, with its loss; its gradients are made."""
        window, loss = self._next_window(), None
        for _ in range(_MOST_WITHOUT_A_LOSS):
            loss = self._gradients_of(window)
            if loss is not None:
                break
            window = self._next_window()
        return window, loss

    def _next_window(self) -> Window:
        every = self._length
        window = [(batch, self._count + index) for index, batch in enumerate(islice(self._batches, every))]
        self._count += every
        return window

    def _gradients_of(self, window: Window) -> float | None:
        """Make the window's gradients, unscaled and clipped as the Trainer clips them; None if it has no loss."""
        scaler = gradient_scaler(self._trainer)
        while True:
            scale = 1.0 if scaler is None else scaler.get_scale()
            batches = window if scaler is None else apply_to_collection(window, Tensor, Tensor.clone)
            self._drop_gradients()  # Lightning does it in the first batch of a window, which these need not be
            losses = run_again(self._trainer, batches)
            if not losses:  # `training_step` may return None, for nothing to be learned from a batch
                return None
            share = len(window) / len(losses) / scale
            loss = self._mean_over_ranks(math.fsum(float(loss) for loss in losses) * share)
            if scaler is None or scale <= 1 or not math.isfinite(loss) or self._unscale(scale):
                break
            # an overflow, after which training would go on with the next batch and half the scale
            scaler.load_state_dict({**scaler.state_dict(), "scale": scale / 2})
        self._module.configure_gradient_clipping(
            self.optimizer,
            gradient_clip_val=self._trainer.gradient_clip_val,
            gradient_clip_algorithm=self._trainer.gradient_clip_algorithm,
        )
        return loss

    def _drop_gradients(self) -> None:
        for parameter, _ in self._gradients:
            parameter.grad = None

    def _unscale(self, scale: float) -> bool:
        """Unscale where a fused optimizer would do so itself; returns whether the gradients are finite."""
        gradients = [parameter.grad for parameter, _ in self._gradients if parameter.grad is not None]
        if getattr(self.optimizer, "_step_supports_amp_scaling", False):
            torch._foreach_mul_(gradients, 1 / scale)
        return all(bool(gradient.isfinite().all()) for gradient in gradients)

    def _mean_over_ranks(self, loss: float) -> float:
        if self._trainer.world_size == 1:
            return loss
        total = torch.tensor(loss, dtype=torch.float64, device=self._trainer.strategy.root_device)
        dist.all_reduce(total)
        return float(total) / self._trainer.world_size

    def _go_back(self) -> None:
        self._snapshot.restore()
        keep_next_plateau_step(self._trainer)  # no step of the run is undone here
        for kept in self._attributes:
            kept.put_back()

    def _close(self) -> None:
        close = getattr(self._batches, "close", None)
        if close is not None:
            close()
