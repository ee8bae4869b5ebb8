# SPDX-License-Identifier: Apache-2.0
"""`configure_optimizers` for any LightningModule: optimizers and per-step schedules, named in plain arguments."""

from collections.abc import Mapping
from importlib import import_module
from typing import Any

from torch import nn
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler, ReduceLROnPlateau

from lightning_stable._lightning.optimizer_setup import (
    groups_of,
    required_steps_of_the_run,
    scheduled,
    takes,
    trainer_of,
)
from lightning_stable.schedules.profile import as_profile

_CALL = "ScheduledOptimizerMixin"
_OF_THE_SCHEDULE = ("profile", "warmup_steps", "schedule_args")
_OPTIONS = {
    "optimizer": "torch.optim.AdamW",
    "lr": 1e-3,
    "weight_decay": 0.0,
    "optimizer_args": None,
    "group_args": None,
    "profile": None,
    "warmup_steps": None,
    "schedule": "lightning_stable.schedules.ProfileLR",
    "schedule_args": None,
}


class ScheduledOptimizerMixin:
    """Gives a LightningModule `configure_optimizers`, with schedules that know how long the run is.

        embeddings, matrices and the head:   weight_decay
        norms, biases and other vectors:     no weight decay
        a schedule steps with its optimizer; its `total_steps`, if not given, is the run's number of optimizer steps

    Paper: none; no decay on norms and biases is the field's custom (GPT-2, ViT).

    Deviations: Lightning's own default steps a schedule once an epoch.

    Put it before `LightningModule` and hand `**kwargs` on; every argument then works from Python, from YAML and with
    `save_hyperparameters()`. `self.lr` is read when the run starts, so Lightning's LR finder can change it.

    With `parts` there is an optimizer, with a schedule of its own, for each submodule that is named; each takes the
    arguments here, unless its entry has others. That is manual optimization: take the optimizers in this order from
    `self.optimizers()` and step the schedules of `self.lr_schedulers()` after them. A run's length then means one step
    of each optimizer a batch.

    Args:
        *args: Handed on to the next class.
        optimizer: Dotted name of an optimizer class, or the class. Prefer the name: a checkpoint with a class among its
            hyper-parameters does not load with `weights_only=True`.
        lr: Peak learning rate.
        weight_decay: Weight decay of what decays.
        optimizer_args: Further arguments of the optimizer, such as `betas`.
        group_args: Arguments of `parameters.param_groups`: which roles decay (`no_decay`), `layer_decay`, `head`, ...
            Not with Muon and its kin, which have groups of their own.
        profile: Of a `ProfileLR`: the name of a profile, such as "Cosine", or `class_path` and `init_args`. Default:
            REX.
        warmup_steps: Of the schedule, in optimizer steps.
        schedule: Dotted name of an LR scheduler class, or the class; `None` for a constant rate, without the arguments
            above and below.
        schedule_args: Further arguments of the schedule, such as `min_ratio`.
        parts: From the names of submodules to arguments of theirs that differ from those here; `{}` if none do.
        **kwargs: Handed on to the next class.

    Raises:
        ValueError: If a name leads to no such class, arguments repeat what is set elsewhere, the optimizer has no
            weight decay to set, the run has no length, or parts leave parameters out.

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
        group_args: dict[str, Any] | None = None,
        profile: str | dict[str, Any] | None = None,
        warmup_steps: float | None = None,
        schedule: str | type[LRScheduler] | None = "lightning_stable.schedules.ProfileLR",
        schedule_args: dict[str, Any] | None = None,
        parts: dict[str, dict[str, Any]] | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        self.lr = lr
        self.weight_decay = weight_decay
        self._options = {
            "optimizer": optimizer,
            "optimizer_args": optimizer_args,
            "group_args": group_args,
            "profile": profile,
            "warmup_steps": warmup_steps,
            "schedule": schedule,
            "schedule_args": schedule_args,
        }
        self._parts = _checked_parts(parts)
        for name in self._parts or [""]:
            _Setup(**self._options_of(name))  # what is wrong shows before the run begins

    def configure_optimizers(self) -> Any:
        """The optimizer, or one for each part, and their schedules with `interval: step`."""
        module: Any = self
        if self._parts is None:
            return _Setup(**self._options_of("")).configure(module, module)
        parts = [_submodule(module, name) for name in self._parts]
        _require_all(module, parts, self._parts)
        setups = [_Setup(**self._options_of(name)) for name in self._parts]
        made = [setup.configure(module, part, len(parts)) for setup, part in zip(setups, parts, strict=True)]
        entries = [one if isinstance(one, dict) else {"optimizer": one} for one in made]
        schedulers = [entry["lr_scheduler"] for entry in entries if "lr_scheduler" in entry]
        return [entry["optimizer"] for entry in entries], schedulers

    def _options_of(self, part: str) -> dict[str, Any]:
        own = (self._parts or {}).get(part, {})
        shared = {"lr": self.lr, "weight_decay": self.weight_decay, **self._options}
        if "schedule" in own and own["schedule"] is None:
            shared.update(dict.fromkeys(_OF_THE_SCHEDULE))  # they are for the other parts
        return {**shared, **own}


class _Setup:
    """An optimizer and its schedule, from plain arguments."""

    def __init__(self, lr: float, weight_decay: float, optimizer: Any, schedule: Any, **options: Any) -> None:
        self.lr = lr
        self.weight_decay = weight_decay
        self.optimizer: Any = _named_class("optimizer", optimizer, Optimizer)
        self.optimizer_args = dict(options["optimizer_args"] or {})
        self.group_args = dict(options["group_args"] or {})
        self.schedule: Any = None if schedule is None else _named_class("schedule", schedule, LRScheduler)
        self.schedule_args = dict(options["schedule_args"] or {})
        self._check()
        self._check_use(options)
        self._add_to_schedule("profile", options["profile"])
        self._add_to_schedule("warmup_steps", options["warmup_steps"])
        if options["profile"] is not None:
            as_profile(options["profile"])

    def configure(self, module: Any, part: nn.Module, several: int = 1) -> Any:
        """The optimizer of `part`, paired with its schedule if there is one."""
        arguments = {"lr": self.lr, **self.optimizer_args}
        if takes(self.optimizer, "weight_decay"):
            arguments["weight_decay"] = self.weight_decay  # also when it is 0: AdamW's own default is not
        lr = self.lr if "layer_decay" in self.group_args else None
        groups = groups_of(part, self.optimizer, self.weight_decay, lr=lr, **self.group_args)
        optimizer = self.optimizer(groups, **arguments)
        if self.schedule is None:
            return optimizer
        needed = self._needs_length_at_once() and "total_steps" not in self.schedule_args
        length: dict[str, Any] = {}
        if needed:
            name = self.schedule.__name__
            length["total_steps"] = required_steps_of_the_run(trainer_of(module, name), name, several)
        return scheduled(module, optimizer, self.schedule(optimizer, **self.schedule_args, **length), several)

    def _needs_length_at_once(self) -> bool:
        """Whether its constructor wants to know, as that of torch's OneCycleLR."""
        settable = isinstance(getattr(self.schedule, "total_steps", None), property)
        return takes(self.schedule, "total_steps") and not settable

    def _add_to_schedule(self, name: str, value: Any) -> None:
        if value is None or self.schedule is None:
            return
        if not takes(self.schedule, name) or name in self.schedule_args:
            why = (
                "it is in `schedule_args`, too" if name in self.schedule_args else f"{self.schedule.__name__} has none"
            )
            raise ValueError(f"`{_CALL}({name}=...)` must be left out, as {why}, got {value!r}.")
        self.schedule_args[name] = value

    def _check_use(self, options: Mapping[str, Any]) -> None:
        """What would do nothing is refused."""
        for name in _OF_THE_SCHEDULE if self.schedule is None else ():
            if options[name]:
                raise ValueError(
                    f"`{_CALL}({name}=...)` must be left out where `schedule` is None, got {options[name]!r}. Set "
                    "`schedule`, or leave it as it is, which is ProfileLR."
                )
        if self.group_args and takes(self.optimizer, "adamw_lr"):
            raise ValueError(
                f"`{_CALL}(group_args=...)` must be left out with {self.optimizer.__name__}, whose groups are matrices "
                f"and the rest, got {self.group_args!r}."
            )

    def _check(self) -> None:
        for name in ("params", "lr", "weight_decay"):
            if name in self.optimizer_args:
                raise ValueError(f"`{_CALL}(optimizer_args=...)` must not hold {name!r}: that has its own argument.")
        for name in ("module", "weight_decay", "lr"):
            if name in self.group_args:
                raise ValueError(f"`{_CALL}(group_args=...)` must not hold {name!r}: it is set here.")
        if "optimizer" in self.schedule_args:
            raise ValueError(f"`{_CALL}(schedule_args=...)` must not hold 'optimizer': it is set here.")
        if self.weight_decay and not takes(self.optimizer, "weight_decay"):
            raise ValueError(
                f"`{_CALL}(weight_decay=...)` must be 0 with {self.optimizer.__name__}, which "
                f"has no weight decay, got {self.weight_decay}."
            )
        if self.schedule is not None and issubclass(self.schedule, ReduceLROnPlateau):
            raise ValueError(
                f"`{_CALL}(schedule=...)` must be a schedule of the step alone, got ReduceLROnPlateau, "
                "which follows a metric. Write your own `configure_optimizers` for it."
            )


def _checked_parts(parts: Any) -> dict[str, dict[str, Any]] | None:
    if parts is None:
        return None
    entries = {name: own or {} for name, own in parts.items()} if isinstance(parts, Mapping) else {}
    wrong = {key for own in entries.values() for key in own} - _OPTIONS.keys()
    if not entries or wrong:
        got = f"an entry with {', '.join(sorted(wrong))}" if wrong else repr(parts)
        raise ValueError(
            f"`{_CALL}(parts=...)` must map names of submodules to arguments out of {', '.join(_OPTIONS)}, got {got}."
        )
    return entries


def _submodule(module: nn.Module, name: str) -> nn.Module:
    try:
        return module.get_submodule(name)
    except AttributeError as error:
        children = ", ".join(child for child, _ in module.named_children())
        raise ValueError(
            f"`{_CALL}(parts=...)` must name submodules, which are {children}, and theirs, got {name!r}."
        ) from error


def _require_all(module: nn.Module, parts: list[nn.Module], names: Mapping[str, Any]) -> None:
    owners = [id(parameter) for part in parts for parameter in part.parameters()]
    if len(owners) != len(set(owners)):
        raise ValueError(f"`{_CALL}(parts=...)` must not share parameters, and those of {', '.join(names)} do.")
    left = [name for name, each in module.named_parameters() if each.requires_grad and id(each) not in set(owners)]
    if left:
        raise ValueError(
            f"`{_CALL}(parts=...)` must hold all parameters that are trained, and leaves out {', '.join(left[:5])}"
            f"{' and others' if len(left) > 5 else ''}. Name their module, or freeze them."
        )


def _named_class(argument: str, name: str | type, kind: type) -> Any:
    """The class itself, or the one its dotted name leads to."""
    found = _find(argument, name) if isinstance(name, str) else name
    if not (isinstance(found, type) and issubclass(found, kind)):
        raise ValueError(f"`{_CALL}({argument}=...)` must be a class derived from {kind.__name__}, got {name!r}.")
    return found


def _find(argument: str, name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    try:
        return getattr(import_module(module), attribute)
    except (ImportError, AttributeError, ValueError) as error:
        raise ValueError(
            f"`{_CALL}({argument}=...)` must be the dotted name of a class, such as "
            f'"torch.optim.AdamW", got {name!r}, which cannot be found: {error}.'
        ) from error
