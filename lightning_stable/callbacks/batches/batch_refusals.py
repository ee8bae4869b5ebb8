# SPDX-License-Identifier: Apache-2.0
"""What `AdaptiveBatchSize` refuses: arguments when it is made, and runs before they begin."""

import inspect
import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler, StochasticWeightAveraging
from lightning.pytorch.strategies import DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy
from lightning.pytorch.utilities.parsing import lightning_hasattr
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature

from lightning_stable._lightning.trainer import callbacks_of

_SHARDED = (DeepSpeedStrategy, FSDPStrategy, ModelParallelStrategy)
_RIVALS = (GradientAccumulationScheduler, StochasticWeightAveraging)
_CHOICES = {"test": ("norm", "inner_product", "orthogonality"), "scale_lr": (None, "linear", "sqrt")}


def check_arguments(**values: Any) -> None:
    """Refuse arguments that are out of their bounds.

    Args:
        **values: By the names that `AdaptiveBatchSize` has for them.

    Raises:
        ValueError: If one is.

    Example:
        >>> check_arguments(test="norm", scale_lr=None, eta=0.0)
        Traceback (most recent call last):
        ...
        ValueError: `AdaptiveBatchSize(eta=...)` must be above 0 and finite, got 0.0.
    """
    for name, value in values.items():
        if name in _CHOICES:
            choices = " or ".join(f'"{choice}"' if choice else "None" for choice in _CHOICES[name])
            _require(name, value, value in _CHOICES[name], choices)
        elif name in ("eta", "theta", "nu"):
            _require(name, value, _is_number(value) and 0.0 < value < math.inf, "above 0 and finite")
        elif name == "smoothing":
            _require(name, value, _is_number(value) and 0.0 <= value < 1.0, "at least 0 and less than 1")
        elif name == "max_growth":
            _require(name, value, _is_number(value) and value > 1.0, "above 1, or the batch would never grow")
        else:
            is_left_out = value is None and name in ("max_batch_size", "max_loader_batch_size")
            is_count = isinstance(value, int) and not isinstance(value, bool) and value >= 1
            _require(name, value, is_left_out or is_count, "a whole number of at least 1")


def refuse_trainer(trainer: Trainer, pl_module: LightningModule, grows_loader: bool) -> None:
    """Refuse what cannot work, before anything has run.

    Args:
        trainer: The trainer in its `setup`.
        pl_module: The module it trains.
        grows_loader: Whether `max_loader_batch_size` is set.

    Raises:
        RuntimeError: If it cannot.

    Example:
        >>> module = LightningModule()
        >>> module.automatic_optimization = False
        >>> trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
        >>> refuse_trainer(trainer, module, grows_loader=False)  # doctest: +ELLIPSIS
        Traceback (most recent call last):
        ...
        RuntimeError: `AdaptiveBatchSize` cannot know what a step is made of ... Use automatic optimization.
    """
    if not pl_module.automatic_optimization:
        raise RuntimeError(
            "`AdaptiveBatchSize` cannot know what a step is made of where `training_step` steps the optimizer itself. "
            "Use automatic optimization."
        )
    if is_param_in_hook_signature(pl_module.training_step, "dataloader_iter", explicit=True):
        raise RuntimeError(
            "`AdaptiveBatchSize` cannot see how large the batches are that `training_step(self, dataloader_iter)` "
            "fetches by itself. Use `training_step(self, batch, batch_idx)`."
        )
    if isinstance(trainer.strategy, _SHARDED):
        raise RuntimeError(
            f"`AdaptiveBatchSize` needs each rank's own gradients, which {type(trainer.strategy).__name__} shards. Use "
            "`Trainer(strategy='ddp')`."
        )
    rivals = [type(callback).__name__ for callback in callbacks_of(trainer) if isinstance(callback, _RIVALS)]
    if rivals:
        raise RuntimeError(
            f"`AdaptiveBatchSize` sets `accumulate_grad_batches`, and so does `{rivals[0]}`. Leave one of them out."
        )
    if grows_loader and not lightning_hasattr(pl_module, "batch_size"):
        raise RuntimeError(
            "`AdaptiveBatchSize(max_loader_batch_size=...)` needs the attribute `batch_size` in the module, its "
            "`hparams` or the data module, from which `train_dataloader` makes the loader. Add it, or leave "
            "`max_loader_batch_size` out: `accumulate_grad_batches` grows without it."
        )


def refuse_training(trainer: Trainer, grows_loader: bool) -> None:
    """Refuse optimizers, schedulers and loaders that cannot work.

    Args:
        trainer: The trainer in its `on_train_start`.
        grows_loader: Whether `max_loader_batch_size` is set.

    Raises:
        RuntimeError: If one cannot.

    Example:
        >>> refuse_training(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), grows_loader=False)
    """
    for optimizer in trainer.optimizers:
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        if getattr(optimizer, "needs_closure", False) or (closure and closure.default is inspect.Parameter.empty):
            raise RuntimeError(
                f"`AdaptiveBatchSize` cannot tell the gradients of `{type(optimizer).__name__}` apart, which runs the "
                "backward pass several times a step. Use an optimizer that needs one."
            )
    for config in trainer.lr_scheduler_configs:
        if config.interval == "step" and config.frequency != 1 and not config.reduce_on_plateau:
            raise RuntimeError(
                f"`AdaptiveBatchSize` cannot count for a scheduler that is stepped after every {config.frequency}th "
                "batch, as it changes how many batches a step takes. Use `frequency: 1`."
            )
    if grows_loader and trainer.num_training_batches == math.inf:
        raise RuntimeError(
            "`AdaptiveBatchSize(max_loader_batch_size=...)` needs an epoch whose length is known, to tell schedules "
            "how much of it a larger batch has used. Give the data set a length, or leave it out."
        )


def refuse_validation(trainer: Trainer, fewest_batches: int) -> None:
    """Refuse a validation every so many batches that a later epoch may not have: Lightning would end the run there.

    Args:
        trainer: The trainer in its `on_train_start`.
        fewest_batches: Of an epoch, once the loader's batch is as large as it may become.

    Raises:
        RuntimeError: If an epoch may become shorter.

    Example:
        >>> quiet = dict(logger=False, enable_checkpointing=False)
        >>> refuse_validation(Trainer(accelerator="cpu", val_check_interval=16, **quiet), fewest_batches=20)
    """
    every = trainer.val_check_interval
    within_epochs = trainer.check_val_every_n_epoch is not None and trainer.limit_val_batches > 0
    if isinstance(every, int) and within_epochs and every > fewest_batches:
        raise RuntimeError(
            f"`AdaptiveBatchSize(max_loader_batch_size=...)` may leave an epoch {fewest_batches} batches, fewer than "
            f"the {every} of `Trainer(val_check_interval=...)`. Set it to a share of an epoch, such as 0.5, or "
            "`check_val_every_n_epoch=None`, or allow the loader less."
        )


def _require(name: str, value: Any, holds: bool, bound: str) -> None:
    if not holds:
        raise ValueError(f"`AdaptiveBatchSize({name}=...)` must be {bound}, got {value!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
