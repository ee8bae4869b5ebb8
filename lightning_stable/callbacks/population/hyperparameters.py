# SPDX-License-Identifier: Apache-2.0
"""Hyper-parameters of a running fit by name: read them, and set them.

lr               the base rate of the optimizer's first group that has one, with `OneCycleLR` and `CyclicLR` the peak;
                 the other groups keep their ratio to it, and schedules go on from where they are, as if they had always
                 had this base
weight_decay     of the first group that decays; the others keep the ratio that they were made with, and groups that
                 were made without decay have none; if all of them were, it is the same for all
momentum, eps    any other number in the optimizer's groups: the same for all of them
betas.0          an element of a tuple in them
module.drop.p    a number that is an attribute of the LightningModule, or of a module in it; a whole one stays whole
"""

from collections.abc import Iterable, Mapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable.callbacks.peak_rates import is_of, peak_rates, with_parts

_OF_THE_MODULE = "module."
_BOUNDS = ("max_lr", "min_lr")
_OF_A_SCHEDULE = ("base_lrs", "max_lrs")  # CyclicLR has the second
_MOST_NAMED = 12


class Hyperparameters:
    """The named hyper-parameters of one run.

    Args:
        call: Who asks, as the user wrote it, for the message of an error.
        names: Of the hyper-parameters.
        trainer: The trainer in its `fit`, with one optimizer as `configure_optimizers` has made it: a checkpoint may
            hold a weight decay of 0, which tells of no ratios.
        pl_module: The module it trains.

    Raises:
        ValueError: If there is none of a name; the message lists those there are.

    Example:
        >>> Hyperparameters.__name__  # needs a running fit; see `PopulationBasedTraining`
        'Hyperparameters'
    """

    def __init__(self, call: str, names: Iterable[str], trainer: Trainer, pl_module: LightningModule) -> None:
        optimizer = trainer.optimizers[0]
        schedules = [config.scheduler for config in trainer.lr_scheduler_configs]
        self._handles: dict[str, _LearningRate | _GroupEntry | _Attribute] = {}
        for name in names:
            if name.startswith(_OF_THE_MODULE):
                handle: _LearningRate | _GroupEntry | _Attribute = _Attribute(pl_module, name)
            elif name == "lr":
                handle = _LearningRate(optimizer, schedules)
            else:
                handle = _GroupEntry(optimizer, name)
            if not handle.exists:
                there = ", ".join([*_entries(optimizer), *_attributes(pl_module)])
                raise ValueError(f"`{call}` knows no hyper-parameter {name!r} that is a number; there are {there}.")
            self._handles[name] = handle

    def read(self) -> dict[str, float]:
        """Their values now."""
        return {name: handle.read() for name, handle in self._handles.items()}

    def write(self, values: Mapping[str, float]) -> None:
        """Set them; to set what they are already changes no bit."""
        for name, value in values.items():
            self._handles[name].write(float(value))


class _LearningRate:
    """The base rate, with all that schedules have derived from it."""

    def __init__(self, optimizer: Optimizer, schedules: list[Any]) -> None:
        self._optimizer = optimizer
        self._schedules = [schedule for schedule in with_parts(schedules) if is_of(schedule, optimizer)]

    @property
    def exists(self) -> bool:
        return any(map(float, self._bases()))

    def read(self) -> float:
        return next(float(base) for base in self._bases() if base)

    def write(self, value: float) -> None:
        bases = self._bases()
        reference = next(index for index, base in enumerate(bases) if base)
        if _holds(bases[reference], value):
            return
        before = [float(base) for base in bases]
        targets = [value if i == reference else value * (base / before[reference]) for i, base in enumerate(before)]
        for group, base, target in zip(self._optimizer.param_groups, before, targets, strict=True):
            _rescale(group, base, target)
        for schedule in self._schedules:
            self._rebase(schedule, before, targets)

    def _bases(self) -> list[Any]:
        return peak_rates(self._optimizer, self._schedules)

    def _rebase(self, schedule: Any, before: list[float], targets: list[float]) -> None:
        for name in _OF_A_SCHEDULE:
            rates = getattr(schedule, name, ())
            if len(rates) == len(targets):
                now = zip(rates, before, targets, strict=True)
                setattr(schedule, name, [_rescaled(rate, base, target) for rate, base, target in now])
        if hasattr(schedule, "_last_lr"):
            schedule._last_lr = [_plain(group["lr"]) for group in self._optimizer.param_groups]


class _GroupEntry:
    """A number in the optimizer's groups, or an element of a tuple in them."""

    def __init__(self, optimizer: Optimizer, name: str) -> None:
        self._optimizer = optimizer
        self._name, _, element = name.partition(".")
        self._element = int(element) if element.isdecimal() else None
        self._shares = self._shares_of_the_groups(keeps_ratios=name == "weight_decay")

    @property
    def exists(self) -> bool:
        return bool(self._shares)

    def read(self) -> float:
        return float(self._value(self._reference()))

    def write(self, value: float) -> None:
        if _holds(self._value(self._reference()), value):
            return
        for index, share in self._shares.items():
            self._set(self._optimizer.param_groups[index], value * share)

    def _shares_of_the_groups(self, keeps_ratios: bool) -> dict[int, float]:
        """What each group that has the number gets of it, by index; kept, as ratios cannot be read off zeros."""
        values = {index: self._value(group) for index, group in enumerate(self._optimizer.param_groups)}
        numbers = {index: float(value) for index, value in values.items() if _is_number(value)}
        reference = next((number for number in numbers.values() if number), 0.0)
        if not keeps_ratios or not reference:
            return dict.fromkeys(numbers, 1.0)
        return {index: number / reference for index, number in numbers.items()}

    def _reference(self) -> dict[str, Any]:
        return self._optimizer.param_groups[next(index for index, share in self._shares.items() if share)]

    def _value(self, group: dict[str, Any]) -> Any:
        entry = group.get(self._name)
        if self._element is None:
            return entry
        is_there = isinstance(entry, list | tuple) and self._element < len(entry)
        return entry[self._element] if is_there else None  # pyright: ignore[reportOptionalSubscript]

    def _set(self, group: dict[str, Any], value: float) -> None:
        if self._element is None:
            group[self._name] = _stored(group[self._name], value)
            return
        entry = list(group[self._name])
        entry[self._element] = _stored(entry[self._element], value)
        group[self._name] = type(group[self._name])(entry)


class _Attribute:
    """A number that is an attribute of a module."""

    def __init__(self, pl_module: LightningModule, name: str) -> None:
        *path, self._name = name.removeprefix(_OF_THE_MODULE).split(".")
        owner: Any = pl_module
        for part in path:
            owner = getattr(owner, part, None)
        self._owner = owner
        now = getattr(owner, self._name, None)
        self._is_whole = not now.is_floating_point() if isinstance(now, Tensor) else isinstance(now, int)

    @property
    def exists(self) -> bool:
        return _is_number(getattr(self._owner, self._name, None))

    def read(self) -> float:
        return float(getattr(self._owner, self._name))

    def write(self, value: float) -> None:
        now = getattr(self._owner, self._name)
        value = round(value) if self._is_whole else value
        if not _holds(now, value):
            stored = _stored(now, value)
            if stored is not now:
                setattr(self._owner, self._name, stored)


def _rescale(group: dict[str, Any], base: float, target: float) -> None:
    """Let a group's rates be what they would be had its base been `target`."""
    bounds = _BOUNDS if "initial_lr" in group and group.keys() >= set(_BOUNDS) else ()  # of OneCycleLR
    for name in ("lr", "initial_lr", *bounds):
        if name in group:
            group[name] = _rescaled(group[name], base, target)


def _rescaled(rate: Any, base: float, target: float) -> Any:
    """What `rate` would be had the base been `target`; a group of rate 0 stays as it is."""
    if not base:
        return rate
    return _stored(rate, target if float(rate) == base else float(rate) * (target / base))


def _stored(now: Any, value: float) -> Any:
    """`value` in the place of `now`; a tensor stays the same tensor."""
    return now.fill_(value) if isinstance(now, Tensor) else value


def _holds(now: Any, value: float) -> bool:
    return bool(now == now.new_tensor(value)) if isinstance(now, Tensor) else now == value


def _plain(rate: Any) -> Any:
    return rate.clone() if isinstance(rate, Tensor) else rate


def _is_number(value: Any) -> bool:
    if isinstance(value, Tensor):
        return value.ndim == 0 and not value.requires_grad and not value.is_complex()
    return isinstance(value, int | float) and not isinstance(value, bool)


def _entries(optimizer: Optimizer) -> list[str]:
    names: dict[str, None] = {}
    for group in optimizer.param_groups:
        for name, value in group.items():
            elements = enumerate(value) if isinstance(value, list | tuple) and name != "params" else ()
            names.update({f"{name}.{index}": None for index, element in elements if _is_number(element)})
            if _is_number(value) and name != "initial_lr":
                names[name] = None
    return list(names)


def _attributes(pl_module: LightningModule) -> list[str]:
    """Numbers that are attributes of modules: all of the outermost, and the rates of dropout within it."""
    own = [name for name, value in vars(pl_module).items() if not name.startswith("_") and isinstance(value, float)]
    rates = [f"{name}.p" for name, module in pl_module.named_modules() if name and _is_number(vars(module).get("p"))]
    found = [f"{_OF_THE_MODULE}{name}" for name in (*own, *rates)]
    return [*found[:_MOST_NAMED], *(["module. ..."] if len(found) > _MOST_NAMED else [])]
