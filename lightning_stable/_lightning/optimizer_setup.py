# SPDX-License-Identifier: Apache-2.0
"""What the command line and `ScheduledOptimizerMixin` have in common: an optimizer's groups, a schedule's length."""

import inspect
import math
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import nn
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_stable._lightning.trainer import batches_of_an_epoch, optimizer_steps_of_the_run
from lightning_stable.optim.muon_groups import muon_groups
from lightning_stable.parameters import param_groups

_WITHOUT_END = """\
`{schedule}(total_steps=None)` takes the length of the run, which has no end here. Set `--trainer.max_steps`, \
`--trainer.max_epochs` or `--lr_scheduler.total_steps`; in Python `Trainer(max_steps=...)`, or \
`Trainer(max_epochs=...)` with a training loader that has a length, or `total_steps` of the schedule."""
_WITHOUT_EPOCHS = """\
`{schedule}(unit="epochs")` needs to know how many batches an epoch has, and the training loader does not. Set \
`Trainer(limit_train_batches=...)` to a number, or count in steps, by `unit="steps"` and `Trainer(max_steps=...)`."""
_WITHOUT_TRAINER = """\
`{schedule}` asks the trainer how long the run is, and {module} has none yet. Let `Trainer.fit` call \
`configure_optimizers`, or set `total_steps` of the schedule, in steps: `schedule_args={{"total_steps": 1000}}`."""


def groups_of(
    module: nn.Module, kind: type[Optimizer], weight_decay: float | None, lr: float | None = None, **arguments: Any
) -> Any:
    """What an optimizer is given to train: groups in which norms and biases do not decay, or matrices and the rest.

    Args:
        module: Its parameters that are trained.
        kind: The class of the optimizer; one with an AdamW of its own for the rest, as Muon has, gets groups by role.
        weight_decay: Of the weights. None or 0: a plain list, and whatever default the optimizer has.
        lr: Of each group, for a `layer_decay`.
        **arguments: As for `parameters.param_groups`.
    """
    if takes(kind, "adamw_lr"):
        return muon_groups(module)
    parameters = [parameter for parameter in module.parameters() if parameter.requires_grad]
    if any(is_lazy(parameter) for parameter in parameters) or not (weight_decay or arguments):
        return parameters
    groups = param_groups(module, weight_decay or 0.0, lr=lr, **arguments)
    if "layer_decay" not in arguments:
        for group in groups:
            del group["name"]  # monitors would log under it, and not where they do without weight decay
    return groups


def takes(kind: type, argument: str) -> bool:
    """Whether the constructor of `kind` has the argument, or takes any."""
    parameters = inspect.signature(kind).parameters.values()
    return any(each.name == argument or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def scheduled(module: LightningModule, optimizer: Optimizer, scheduler: Any, several: int = 1) -> dict[str, Any]:
    """Pair optimizer and schedule, which steps once per optimizer step and is as long as the run if nobody has said.

    Args:
        module: The module of the run; its trainer is asked for the run's length, if that is needed.
        optimizer: The optimizer.
        scheduler: Its schedule.
        several: How many optimizers take steps in turn, all of which `max_steps` counts.

    Raises:
        ValueError: If the schedule needs a length and the run has none.
        RuntimeError: If it needs one and there is no trainer.
    """
    if isinstance(scheduler, ReduceLROnPlateau):
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "monitor": _monitor(scheduler)}}
    if getattr(scheduler, "total_steps", 0) is None or getattr(scheduler, "unit", "steps") == "epochs":
        give_length(trainer_of(module, type(scheduler).__name__), scheduler, several)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def give_length(trainer: Trainer, scheduler: LRScheduler, several: int = 1) -> None:
    """Set `total_steps` of a schedule that does not know how long the run is; in epochs, also what a step uses.

    A budget in samples, tokens or seconds is somebody else's to say: the callback `TrainingBudget` does. A run without
    a step needs no length.

    Args:
        trainer: The trainer in its `fit`.
        scheduler: One with a `total_steps` to set.
        several: As in `scheduled`.

    Raises:
        ValueError: If the schedule needs a length and the run has none.
    """
    schedule: Any = scheduler
    unit = getattr(schedule, "unit", "steps")
    if unit not in ("steps", "epochs"):
        return
    name = type(scheduler).__name__
    if unit == "steps":
        length = steps_of_the_run(trainer, several)
    else:
        steps_an_epoch = _steps_of_an_epoch(trainer, name)
        length = _epochs_of_the_run(trainer, steps_an_epoch, several)
        schedule.increment = 1.0 / max(steps_an_epoch, 1)
    if length == 0 or schedule.total_steps is not None:
        return
    if math.isfinite(length):
        schedule.total_steps = length
    elif getattr(getattr(schedule, "curve", None), "needs_length", True):
        raise ValueError(_WITHOUT_END.format(schedule=name))


def trainer_of(module: LightningModule, schedule: str) -> Trainer:
    """The module's trainer, or what to do without.

    Args:
        module: The module.
        schedule: Name of the class that needs to know.

    Raises:
        RuntimeError: If the module has none.
    """
    try:
        return module.trainer
    except RuntimeError:
        raise RuntimeError(_WITHOUT_TRAINER.format(schedule=schedule, module=type(module).__name__)) from None


def required_steps_of_the_run(trainer: Trainer, schedule: str, several: int = 1) -> int:
    """How many steps each optimizer will have taken, and 1 in a run without any.

    Args:
        trainer: The trainer in its `fit`.
        schedule: Name of the class that needs to know.
        several: As in `scheduled`.

    Raises:
        ValueError: If nobody knows.
    """
    steps = steps_of_the_run(trainer, several)
    if not math.isfinite(steps):
        raise ValueError(_WITHOUT_END.format(schedule=schedule))
    return max(int(steps), 1)


def steps_of_the_run(trainer: Trainer, several: int = 1) -> int | float:
    """How many steps each optimizer will have taken; infinity if nobody knows."""
    if trainer.limit_train_batches == 0:
        return 0
    steps = optimizer_steps_of_the_run(trainer)
    if not 0 <= steps < math.inf:  # -1: a stream, of which nobody knows how long it is
        return math.inf
    return int(min(steps, _most_steps(trainer, several)))


def _most_steps(trainer: Trainer, several: int) -> int | float:
    """What `max_steps` leaves each optimizer; Lightning looks at it between batches, in which all of them step."""
    return math.ceil(trainer.max_steps / several) if trainer.max_steps >= 0 else math.inf


def _steps_of_an_epoch(trainer: Trainer, schedule: str) -> int:
    batches = batches_of_an_epoch(trainer)
    if not math.isfinite(batches):
        raise ValueError(_WITHOUT_EPOCHS.format(schedule=schedule))
    return math.ceil(batches / trainer.accumulate_grad_batches)


def _epochs_of_the_run(trainer: Trainer, steps_an_epoch: int, several: int) -> float:
    epochs = math.inf if trainer.max_epochs is None or trainer.max_epochs < 0 else trainer.max_epochs
    return min(epochs, _most_steps(trainer, several) * (1.0 / steps_an_epoch)) if steps_an_epoch else 0


def _monitor(scheduler: Any) -> Any:
    return getattr(scheduler, "monitor", None)
