# SPDX-License-Identifier: Apache-2.0
"""What `PopulationBasedTraining` refuses, before a run begins."""

import math

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import StochasticWeightAveraging, WeightAveraging
from lightning.pytorch.utilities import rank_zero_warn

from lightning_stable._lightning.trainer import callbacks_of
from lightning_stable.callbacks.schedule_free import ScheduleFree

_CALL = "PopulationBasedTraining"


def refuse_trainer(trainer: Trainer, pl_module: LightningModule, own: Callback) -> None:
    """Raise an error for a trainer or a module in which no members can take turns.

    Example:
        >>> refuse_trainer.__name__  # needs a Trainer with a strategy
        'refuse_trainer'
    """
    if not pl_module.automatic_optimization:
        raise RuntimeError(
            f"`{_CALL}` exchanges members between two optimizer steps, and with manual optimization only the module"
            " knows where those are. Use automatic optimization."
        )
    if trainer.world_size > 1:
        raise RuntimeError(
            f"`{_CALL}` trains its members in turn on one device, and there are {trainer.world_size} processes. Use"
            " `Trainer(devices=1)`; `lightning-stable fit --engine ray` trains the members side by side."
        )
    if trainer.strategy.handles_gradient_accumulation:
        raise RuntimeError(
            f"`{_CALL}` cannot copy the state of `{type(trainer.strategy).__name__}`, which steps by itself. Use"
            ' `Trainer(strategy="auto")`.'
        )
    callbacks = callbacks_of(trainer)
    for position, callback in enumerate(callbacks):
        name = type(callback).__name__
        if callback is not own and isinstance(callback, type(own)):
            raise ValueError(f"`Trainer(callbacks=...)` must hold one `{_CALL}` only.")
        if getattr(callback, "judges_gradients", False):
            raise ValueError(
                f"`{name}` and `{_CALL}` cannot work in one run: the former's history and snapshots are of one model,"
                " and would call another member a spike, or roll back to it. Leave one of them out; a member that"
                " diverges is replaced after its generation."
            )
        if isinstance(callback, StochasticWeightAveraging):
            raise ValueError(
                f"`{name}` puts a schedule of its own in the place of each member's. Use `WeightAveraging` behind"
                f" `{_CALL}`."
            )
        if isinstance(callback, WeightAveraging | ScheduleFree) and position < callbacks.index(own):
            raise ValueError(
                f"`{_CALL}` must come before `{name}`, which changes the weights when training ends. Use"
                f" `callbacks=[{_CALL}(...), {name}(...)]`."
            )


def refuse_schedules(trainer: Trainer, population: int, interval: int) -> None:
    """Raise a `ValueError` for a schedule that would step for one member only; warn of one that is too long.

    Example:
        >>> refuse_schedules.__name__  # needs a running fit
        'refuse_schedules'
    """
    batches = trainer.num_training_batches
    steps = math.ceil(batches / trainer.accumulate_grad_batches) if math.isfinite(batches) else 0
    each = trainer.estimated_stepping_batches / population
    for config in trainer.lr_scheduler_configs:
        name = type(config.scheduler).__name__
        if config.interval == "epoch" and (not steps or interval % steps):
            of_how_many = f"{steps} optimizer steps" if steps else "unknown length"
            raise ValueError(
                f"`{name}` steps at the end of an epoch (of {of_how_many}), for whoever trains then, and turns of"
                f" {interval} steps end elsewhere. Let it step with the optimizer,"
                ' `{"scheduler": ..., "interval": "step"}`, or choose an `interval` of whole epochs.'
            )
        counts_steps = getattr(config.scheduler, "unit", "steps") == "steps"
        total = getattr(config.scheduler, "total_steps", None) if counts_steps else None
        if config.interval == "step" and isinstance(total, int) and total >= each + 1:
            rank_zero_warn(
                f"`{name}(total_steps={total})` is longer than the {each:,.0f} optimizer steps that each of the"
                f" {population} members takes, so none of them comes to its end. Set `total_steps={math.ceil(each)}`."
            )
