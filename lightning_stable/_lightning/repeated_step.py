# SPDX-License-Identifier: Apache-2.0
"""Run forward and backward of a window again as the training loop does, unseen by callbacks, loggers and profilers.

Private attributes: `_build_kwargs` of `fit_loop.epoch_loop`, which makes the arguments of `training_step`;
`_make_closure` of `automatic_optimization` below it, which joins `training_step`, `zero_grad` and `backward`;
`_on_before_batch_transfer` of the module. Public, but with a role of their own here: `callbacks` and `profiler` of the
Trainer and `scaler` of the precision plugin are exchanged for as long as a step is run again.
"""

import copy
from collections import OrderedDict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.profilers import PassThroughProfiler
from torch import Tensor

from lightning_stable._lightning.trainer import callbacks_of, gradient_scaler


def run_again(trainer: Trainer, batches: Iterable[tuple[Any, int]]) -> list[Tensor]:
    """Run forward and backward of `batches`, each with its index, and return what `backward` was called on.

    Automatic optimization only. Gradients are added to those that are there, and are unscaled afterwards. A callback
    that makes a batch or a step other than they are by themselves may have a method `around_repeated_batch(trainer,
    pl_module, batch)`, a context manager; nothing else of any callback is called.
    """
    concerned = [callback for callback in callbacks_of(trainer) if hasattr(callback, "around_repeated_batch")]
    noted = _Losses()
    with _unseen(trainer, noted):
        for batch, batch_idx in batches:
            _forward_and_backward(trainer, concerned, batch, batch_idx)
        scaler, optimizer = gradient_scaler(trainer), trainer.optimizers[0]
        if scaler is not None and not getattr(optimizer, "_step_supports_amp_scaling", False):
            scaler.unscale_(optimizer)
    return noted.losses


class _Losses(Callback):
    """Notes the losses as a callback in the run sees them: scaled, and divided by the number of micro-batches."""

    def __init__(self) -> None:
        super().__init__()
        self.losses: list[Tensor] = []

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        self.losses.append(loss.detach())


def _forward_and_backward(trainer: Trainer, concerned: list[Any], batch: Any, batch_idx: int) -> None:
    pl_module, epoch_loop = trainer.lightning_module, trainer.fit_loop.epoch_loop
    batch = trainer.precision_plugin.convert_input(batch)
    batch = pl_module._on_before_batch_transfer(batch, dataloader_idx=0)
    batch = trainer.strategy.batch_to_device(batch, dataloader_idx=0)
    with ExitStack() as undo:
        for callback in concerned:
            undo.enter_context(callback.around_repeated_batch(trainer, pl_module, batch))
        arguments = epoch_loop._build_kwargs(OrderedDict(), batch, batch_idx)
        epoch_loop.automatic_optimization._make_closure(arguments, trainer.optimizers[0], batch_idx).closure()


@contextmanager
def _unseen(trainer: Trainer, noted: Callback) -> Iterator[None]:
    """No callback but `noted`, no logger and no profiler is called, and `self.log` does nothing."""
    scaler = gradient_scaler(trainer)
    loggers = trainer.loggers
    with ExitStack() as undo:
        undo.callback(setattr, trainer, "loggers", loggers)
        trainer.loggers = [DummyLogger() for _ in loggers]
        _stand_in(undo, trainer, {"callbacks": [noted], "profiler": PassThroughProfiler()})
        _stand_in(undo, trainer.lightning_module, {"log": _log_nothing, "log_dict": _log_nothing})
        if scaler is not None:  # which remembers of every optimizer whether it was unscaled
            _stand_in(undo, trainer.precision_plugin, {"scaler": copy.deepcopy(scaler)})
        yield


def _stand_in(undo: ExitStack, owner: Any, others: Mapping[str, Any]) -> None:
    """Exchange attributes of `owner` until `undo` is closed."""
    attributes = vars(owner)
    found = {name: attributes[name] for name in others if name in attributes}

    def bring_back() -> None:
        for name in others:
            attributes.pop(name, None)
        attributes.update(found)

    undo.callback(bring_back)
    attributes.update(others)


def _log_nothing(*args: Any, **kwargs: Any) -> None:
    return
