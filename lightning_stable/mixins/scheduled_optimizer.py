# SPDX-License-Identifier: Apache-2.0
"""`configure_optimizers` for any LightningModule: an optimizer and a per-step schedule, named in plain arguments."""

import inspect
from collections.abc import Iterable
from importlib import import_module
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_stable._lightning.trainer import optimizer_steps_of_the_run


class ScheduledOptimizerMixin:
    """Gives a LightningModule `configure_optimizers`, with a schedule that knows how long the run is.

        parameters with two axes or more:   weight_decay
        all others (biases, norm gains):    no weight decay
        the schedule steps with the optimizer; its `total_steps`, if not given, is `trainer.estimated_stepping_batches`

    Paper: none; no decay on parameters with fewer than two axes is the field's custom (GPT-2, ViT).

    Deviations: Lightning's own default steps a schedule once an epoch.

    Put it before `LightningModule` and hand `**kwargs` on; every argument then works from Python, from YAML and with
    `save_hyperparameters()`. `self.lr` is read when the run starts, so Lightning's LR finder can change it.

    Args:
        *args: Handed on to the next class.
        optimizer: Dotted name of an optimizer class, or the class. Prefer the name: a checkpoint with a class among its
            hyper-parameters does not load with `weights_only=True`.
        lr: Peak learning rate.
        weight_decay: Weight decay of the parameters with two axes or more.
        optimizer_args: Further arguments of the optimizer, such as `betas`.
        schedule: Dotted name of an LR scheduler class, or the class; `None` for a constant rate.
        schedule_args: Arguments of the schedule, such as `warmup_steps`.
        **kwargs: Handed on to the next class.

    Raises:
        ValueError: If a name leads to no such class, `optimizer_args` or `schedule_args` repeat what is set elsewhere,
            the optimizer has no weight decay to set, or the run has no length.

    Example:
        >>> import torch
        >>> from lightning.pytorch import LightningModule
        >>> class Model(ScheduledOptimizerMixin, LightningModule):
        ...     def __init__(self, width: int = 4, **kwargs):
        ...         super().__init__(**kwargs)
        ...         self.save_hyperparameters()
        ...         self.layer = torch.nn.Linear(width, 1)
        >>> model = Model(lr=3e-4, weight_decay=0.1, schedule=None)
        >>> optimizer = model.configure_optimizers()
        >>> [(group["weight_decay"], len(group["params"])) for group in optimizer.param_groups]
        [(0.1, 1), (0.0, 1)]
    """

    def __init__(
        self,
        *args: Any,
        optimizer: str | type[Optimizer] = "torch.optim.AdamW",
        lr: float = 1e-3,
        weight_decay: float = 0.0,
        optimizer_args: dict[str, Any] | None = None,
        schedule: str | type[LRScheduler] | None = "lightning_stable.schedules.REXLR",
        schedule_args: dict[str, Any] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lr = lr
        self.weight_decay = weight_decay
        self._optimizer_class = _named_class("optimizer", optimizer, Optimizer)
        self._optimizer_args = dict(optimizer_args or {})
        self._schedule_class = None if schedule is None else _named_class("schedule", schedule, LRScheduler)
        self._schedule_args = dict(schedule_args or {})
        self._check_arguments()

    def configure_optimizers(self) -> Any:
        """The optimizer, and the schedule with `interval: step`."""
        arguments = {"lr": self.lr, **self._optimizer_args}
        if _takes(self._optimizer_class, "weight_decay"):
            arguments["weight_decay"] = self.weight_decay  # also when it is 0: AdamW's own default is not
        parameters = self.parameters()  # pyright: ignore[reportAttributeAccessIssue]
        optimizer = self._optimizer_class(_groups(parameters, self.weight_decay), **arguments)
        if self._schedule_class is None:
            return optimizer
        scheduler = self._schedule(self._schedule_class, optimizer)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _schedule(self, kind: type[LRScheduler], optimizer: Optimizer) -> LRScheduler:
        arguments = self._schedule_args
        if "total_steps" not in inspect.signature(kind).parameters or arguments.get("total_steps") is not None:
            return kind(optimizer, **arguments)
        total_steps = optimizer_steps_of_the_run(self.trainer)  # pyright: ignore[reportAttributeAccessIssue]
        if total_steps == float("inf"):
            raise ValueError(
                "`ScheduledOptimizerMixin(schedule=...)` must know how long the run is, and it is endless. Set "
                '`Trainer(max_steps=...)` or `max_epochs`, or `schedule_args={"total_steps": ...}`.'
            )
        total_steps = int(total_steps)
        member = inspect.getattr_static(kind, "total_steps", None)
        if (
            isinstance(member, property) and member.fset is not None
        ):  # it minds a short trial run less than a constructor
            scheduler = kind(optimizer, **arguments)
            scheduler.total_steps = total_steps  # pyright: ignore[reportAttributeAccessIssue]
            return scheduler
        return kind(optimizer, **{**arguments, "total_steps": total_steps})

    def _check_arguments(self) -> None:
        for name in ("params", "lr", "weight_decay"):
            if name in self._optimizer_args:
                raise ValueError(
                    f"`ScheduledOptimizerMixin(optimizer_args=...)` must not hold {name!r}: that has its own argument."
                )
        if "optimizer" in self._schedule_args:
            raise ValueError("`ScheduledOptimizerMixin(schedule_args=...)` must not hold 'optimizer': it is set here.")
        if self.weight_decay and not _takes(self._optimizer_class, "weight_decay"):
            raise ValueError(
                f"`ScheduledOptimizerMixin(weight_decay=...)` must be 0 with {self._optimizer_class.__name__}, which "
                f"has no weight decay, got {self.weight_decay}."
            )
        if self._schedule_class is not None and issubclass(self._schedule_class, ReduceLROnPlateau):
            raise ValueError(
                "`ScheduledOptimizerMixin(schedule=...)` must be a schedule of the step alone, got ReduceLROnPlateau, "
                "which follows a metric. Write your own `configure_optimizers` for it."
            )


def _groups(parameters: Iterable[nn.Parameter], weight_decay: float) -> list[dict[str, Any]]:
    trained = [parameter for parameter in parameters if parameter.requires_grad]
    if not weight_decay:
        return [{"params": trained}]
    decayed = [parameter for parameter in trained if parameter.ndim >= 2]
    others = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [{"params": decayed, "weight_decay": weight_decay}, {"params": others, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]


def _takes(kind: type, argument: str) -> bool:
    parameters = inspect.signature(kind).parameters.values()
    return any(each.name == argument or each.kind is inspect.Parameter.VAR_KEYWORD for each in parameters)


def _named_class(argument: str, name: str | type, kind: type) -> Any:
    """The class itself, or the one its dotted name leads to."""
    found = _find(argument, name) if isinstance(name, str) else name
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(
            f"`ScheduledOptimizerMixin({argument}=...)` must be a class derived from {kind.__name__}, got {name!r}."
        )
    return found


def _find(argument: str, name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"`ScheduledOptimizerMixin({argument}=...)` must be the dotted name of a class, such as "
            f'"torch.optim.AdamW", got {name!r}, which cannot be found: {error}.'
        ) from error
