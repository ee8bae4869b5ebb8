# SPDX-License-Identifier: Apache-2.0
"""Accumulation windows whose length may change from one to the next, also in the middle of an epoch.

Lightning ends a window, and zeroes the gradients of the last one, where the number of the batch is a multiple of
`accumulate_grad_batches`: another value in mid-epoch cuts a window short, or throws away gradients in its middle.
Private attributes: `_accumulated_batches_reached` of `fit_loop.epoch_loop`, which says whether a window is full, and
`_make_zero_grad_fn` of `automatic_optimization` below it, with `_skip_backward`, `_on_before_zero_grad` and
`_optimizer_zero_grad`; here they count the batches of the window itself. `fit_loop._combined_loader` is what Lightning
makes anew at an epoch's beginning if it is not there.
"""

from collections.abc import Callable

from lightning.pytorch import Trainer
from torch.optim import Optimizer

_IS_FULL, _ZERO_GRAD = "_accumulated_batches_reached", "_make_zero_grad_fn"


class AccumulationWindows:
    """Counts the batches of each window; the loss is divided by the window's length, as Lightning does it.

    The last window of an epoch whose length is known is as long as the epoch has batches left, and not cut short: so
    its gradient is a mean, too.

    Args:
        trainer: The trainer in its `fit`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._before = trainer.accumulate_grad_batches
        self._length = self._before
        self._count = 0
        self._first = -1  # index of the window's first batch
        self._own = (self._is_full, self._make_zero_grad)
        epoch_loop = trainer.fit_loop.epoch_loop
        epoch_loop._accumulated_batches_reached, epoch_loop.automatic_optimization._make_zero_grad_fn = self._own

    @property
    def count(self) -> int:
        """Batches of the window so far, the one under way included."""
        return self._count

    @property
    def length(self) -> int:
        """Batches of the window when it is full."""
        return self._length

    @property
    def given(self) -> int:
        """Batches of a window as the Trainer was told."""
        return self._before

    @property
    def begins(self) -> bool:
        """Whether the batch under way is its window's first."""
        return self._count == 1

    def begin_batch(self, batch_idx: int, wanted: int) -> None:
        """Count a batch, in `on_train_batch_start`; if a window begins with it, it will have `wanted` batches."""
        if batch_idx == 0 or self._is_full():
            batch_progress = self._trainer.fit_loop.epoch_loop.batch_progress
            left = self._trainer.num_training_batches - batch_progress.current.ready + 1
            self._length = int(max(1, min(wanted, left)))
            self._count, self._first = 0, batch_idx
            self._trainer.accumulate_grad_batches = self._length
        self._count += 1

    def detach(self) -> None:
        """Leave the trainer as it was found."""
        epoch_loop = self._trainer.fit_loop.epoch_loop
        for loop, name in ((epoch_loop, _IS_FULL), (epoch_loop.automatic_optimization, _ZERO_GRAD)):
            if vars(loop).get(name) in self._own:
                delattr(loop, name)
        self._trainer.accumulate_grad_batches = self._before

    def _is_full(self) -> bool:
        return self._count == 0 or self._count >= self._length

    def _make_zero_grad(self, batch_idx: int, optimizer: Optimizer) -> Callable[[], None] | None:
        loop = self._trainer.fit_loop.epoch_loop.automatic_optimization
        if batch_idx != self._first or loop._skip_backward:
            return None

        def zero_grad() -> None:
            loop._on_before_zero_grad(optimizer)
            loop._optimizer_zero_grad(batch_idx, optimizer)

        return zero_grad


def counts_windows(trainer: Trainer) -> bool:
    """Whether `AccumulationWindows` says where windows end, and not the number of the batch."""
    return _IS_FULL in vars(trainer.fit_loop.epoch_loop)


def length_without_growth(trainer: Trainer) -> int:
    """Batches of a window as the Trainer was told, also while `AccumulationWindows` makes them of other lengths."""
    windows = getattr(vars(trainer.fit_loop.epoch_loop).get(_IS_FULL), "__self__", None)
    return windows.given if isinstance(windows, AccumulationWindows) else trainer.accumulate_grad_batches


def make_loader_again(trainer: Trainer) -> None:
    """Let Lightning ask for the training loader once more before the next epoch begins."""
    trainer.fit_loop._combined_loader = None
