# SPDX-License-Identifier: Apache-2.0
"""Pass over batches: they go through the training loop like any other, but for their `training_step`.

Private attributes: `run` of `fit_loop.epoch_loop.automatic_optimization` and of `manual_optimization` beside it, which
the epoch loop calls for a batch; `_DataFetcherWrapper`, the `dataloader_iter` that a `training_step` may fetch from.
"""

from collections.abc import Callable, Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.fetchers import _DataFetcherWrapper

from lightning_stable._lightning import progress


class PassedOver:
    """Leaves out `training_step`, backward and the optimizer of a number of batches.

    The batch is fetched and counted, hooks are called, with the latest finite loss as if it were of this batch (many a
    callback reads `outputs["loss"]`), and whoever asked for it undoes what hooks and schedules have changed.

    Args:
        trainer: The trainer in its `fit`.
    """

    def __init__(self, trainer: Trainer) -> None:
        self._trainer = trainer
        self._wanted = self._done = 0
        self._a_window = 1
        self.is_on = False
        self._loss: torch.Tensor | None = None
        for loop in self._optimization_loops():
            loop.run = self._choosing(loop.run)

    def detach(self) -> None:
        """Leave the trainer as it was found."""
        for loop in self._optimization_loops():
            vars(loop).pop("run", None)

    def pass_over(self, batches: int, window_length: int, left: float) -> int:
        """Pass over the next `batches`, rounded up to whole windows; returns how many that are of those `left`."""
        automatic = self._trainer.lightning_module.automatic_optimization
        self._a_window = self._trainer.accumulate_grad_batches if automatic else window_length
        still_wanted = self._wanted - self._done  # by a response before this one
        whole = -(-batches // self._a_window) * self._a_window
        self._wanted = int(min(max(whole, still_wanted), left))
        self._done = 0
        return self._wanted

    def begin_window(self, is_replayed: bool) -> bool:
        """Whether the window that begins is passed over; a replayed one is not, but those after the replay are."""
        self.is_on = self._wanted > 0 and not is_replayed
        return self.is_on

    def end_batch(self) -> bool:
        """Count a batch that was passed over; returns whether its window has ended."""
        self._done += 1
        is_last = progress.is_last_batch(self._trainer)
        if self._trainer.lightning_module.automatic_optimization:
            has_ended = not progress.is_accumulating(self._trainer)
        else:
            has_ended = self._done % self._a_window == 0 or is_last
        if is_last or (has_ended and self._done >= self._wanted):
            self.forget()
        return has_ended

    def forget(self) -> None:
        """Drop what is left of the count, as at the end of an epoch."""
        self._wanted = self._done = 0

    def state_dict(self) -> dict[str, Any]:
        """How many batches are to be passed over, and how far that has come."""
        return {"wanted": self._wanted, "done": self._done, "a_window": self._a_window}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on where `state_dict` was written."""
        self._wanted, self._done = state_dict["wanted"], state_dict["done"]
        self._a_window = state_dict["a_window"]

    def _choosing(self, run: Callable[..., Any]) -> Callable[..., Any]:
        def choose(*args: Any) -> Any:
            if not self.is_on:
                outputs = run(*args)
                self._note_loss(outputs)
                return outputs
            for argument in args[-1].values():
                if isinstance(argument, _DataFetcherWrapper):
                    next(argument)  # the step would have fetched
            return {} if self._loss is None else {"loss": self._loss.clone()}

        return choose

    def _note_loss(self, outputs: Any) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else None
        if isinstance(loss, torch.Tensor):
            loss = loss.detach()
            self._loss = loss if self._loss is None else torch.where(loss.isfinite(), loss, self._loss.to(loss))

    def _optimization_loops(self) -> tuple[Any, Any]:
        epoch_loop = self._trainer.fit_loop.epoch_loop
        return epoch_loop.automatic_optimization, epoch_loop.manual_optimization
