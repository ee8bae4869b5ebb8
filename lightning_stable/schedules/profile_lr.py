# SPDX-License-Identifier: Apache-2.0
"""One learning-rate schedule for all profiles: warmup, profile, sampling, and an end that may come at any time."""

import warnings
from collections.abc import Sequence
from typing import Any, Literal

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_stable.schedules.arguments import is_number, number_text, plain_number, require_one_of, require_positive
from lightning_stable.schedules.curve import Curve
from lightning_stable.schedules.profile import Profile
from lightning_stable.schedules.warmup import second_moment_beta
from lightning_stable.schedules.wsd import decayed

Unit = Literal["steps", "epochs", "samples", "tokens", "seconds"]
Warmup = Literal["linear", "cosine", "exponential", "untuned_linear", "untuned_exponential", "radam"]
_WHOLE = ("steps", "samples", "tokens")
_STATE = (
    *("last_epoch", "base_lrs", "_step_count", "_last_lr"),  # torch's
    *("_since", "_increment", "_first_increment", "_total_steps", "_cooldown", "_momenta_follow"),
)


class ProfileLR(LRScheduler):
    """Warms the learning rate up and then follows a profile, sampled as often as you like, to the end of the budget.

        p: `position`, what has been used;  i: `increment`, what a step uses;  w: `warmup_steps`;  T: `total_steps`
        rate = base rate * warmup * (min_ratio + (1 - min_ratio) * profile)
        warmup = warmup curve at (p + i) / w    while p + i < w,    and 1 afterwards
               = rule of step (p + i), with each group's own beta2    for untuned warmups
        profile = its value at the start    while p < w,    at the latest sample <= p - w, of T - w    afterwards

    Paper: Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training with an Improved Schedule" (MLSys 2022): a
    schedule is a profile and how often it is sampled. `warmup_factor` and `untuned_factor` name those of the warmups.

    Deviations: warmup, `min_ratio`, `cooldown` and units other than steps are ours. Momentum follows a profile that has
    one (`OneCycle`) in groups with `betas`, and in those whose `momentum` is not 0 when they are first seen; through a
    `cooldown`, too, so that it stays where the profile has it when the rate is down.

    The rate is a function of position, increment and base rates alone: whatever happens to a group's `lr` in between,
    it cannot drift, and `jump` to any place gives what stepping there gives, to the rounding of fractional increments.
    Each group keeps its own base rate; one that is added later has the `lr` it came with. Lightning's `BaseFinetuning`
    gives it another group's rate of the moment, which then decays twice: pass `lr` to `unfreeze_and_add_param_group`.

    A checkpoint holds the position; the curve is that of the schedule it is loaded into, and so is a `total_steps` that
    was passed to the constructor, which is how a resumed run is lengthened. A length that was taken from the trainer
    gives way to that of the checkpoint.

    For a budget in samples, tokens or seconds somebody has to say what a step uses, by setting `increment` before the
    optimizer's step, or at least before `step()`: the callback `TrainingBudget` does. In epochs `lightning-stable fit`
    and `ScheduledOptimizerMixin` do.

    Args:
        optimizer: The optimizer whose groups' `lr` are the base rates.
        profile: The curve; in YAML and hyper-parameters also its name, or a mapping of `class_path` and `init_args`.
            Default: `REX()`.
        total_steps: The budget in `unit`s, warmup included. `None`: set later by `scheduler.total_steps = n`, before
            the profile needs it. `lightning-stable fit` and `ScheduledOptimizerMixin` set it to the length of the run.
        warmup_steps: Length of the warmup in `unit`s; its last step runs where the profile starts, for most at the base
            rate. In steps 0, or 1 and more.
        warmup: `linear`, `cosine`, `exponential`; or, for Adam and its kin, with `warmup_steps=0` and in steps,
            `untuned_linear` (2 / (1 - beta2) steps), `untuned_exponential` or `radam`.
        warmup_start: The factor the warmup starts from, in [0, 1); default 0, and 0.01 for `exponential`; `min_ratio`
            does not raise it. No step runs at 0 because of it: the factor of a step is that of its end.
        min_ratio: The rate where the profile is 0, as a fraction of the base rate. The warmup starts below it.
        sample_every: Take a new value from the profile every so many `unit`s.
        sample_at: Take new values from the profile at these fractions of the way alone, such as [0.5, 0.75] ("50-75").
        unit: What is counted: `steps` of the optimizer, `epochs`, `samples`, `tokens` or `seconds`.
        last_epoch: Steps already done, minus one; torch's convention.

    Raises:
        ValueError: If an argument is out of its bounds, or an untuned warmup meets an optimizer with no second moment.
        RuntimeError: If `step()` comes to a place that depends on `total_steps` while that is unknown.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler = ProfileLR(optimizer, "REX", total_steps=6, warmup_steps=2)
        >>> rates = []
        >>> for _ in range(7):
        ...     rates.append(round(scheduler.get_last_lr()[0], 3))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.857, 0.667, 0.4, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        profile: Profile | str | dict[str, Any] | None = None,
        total_steps: float | None = None,
        warmup_steps: float = 0,
        warmup: Warmup = "linear",
        warmup_start: float | None = None,
        min_ratio: float = 0.0,
        sample_every: float | None = None,
        sample_at: Sequence[float] | None = None,
        unit: Unit = "steps",
        last_epoch: int = -1,
    ) -> None:
        self.curve = Curve(profile, warmup_steps, warmup, warmup_start, min_ratio, sample_every, sample_at, unit)
        self._said = repr(self.curve)  # asked for in every step that is guarded
        self._increment: float = 1
        self._first_increment: float = 1  # what steps use in this run, so far as was known before its first one
        self._since: tuple[int, float] = (0, 0)  # `last_epoch` and position from which on steps have used `increment`
        self._has_own_length = total_steps is not None
        self._total_steps: float | None = None
        self._cooldown: tuple[float, float, float, str] | None = None  # position, increment there, length, curve
        self._momenta_follow: list[bool] = []  # by group, for good: a momentum may come down to 0
        beta2s = self._beta2s_of(optimizer)
        if total_steps is not None:
            self._set_total_steps(total_steps, beta2s)
        super().__init__(optimizer, last_epoch)

    @property
    def position(self) -> float:
        """What has been used of the budget, in `unit`s."""
        return self._position_at(self.last_epoch)

    @property
    def increment(self) -> float:
        """What a step uses of the budget; before the first step, setting it sets the rates, too."""
        return self._increment

    @increment.setter
    def increment(self, increment: float) -> None:
        if not is_number(increment) or increment < 0:
            raise ValueError(f"`ProfileLR.increment` must be a number of at least 0, got {increment!r}.")
        increment = plain_number(increment)
        if self._step_count <= 1:  # torch's own first call is counted
            self._first_increment = increment
        if increment == self._increment:
            return
        self._since, self._increment = (self.last_epoch, self.position), increment
        if self.position == 0 and self._wrote_last(self._last_lr):
            self._write(self.get_lr())

    @property
    def unit(self) -> str:
        """What is counted: `steps`, `epochs`, `samples`, `tokens` or `seconds`."""
        return self.curve.unit

    @property
    def total_steps(self) -> float | None:
        """The budget in `unit`s, warmup included; `None` while unknown."""
        return self._total_steps

    @total_steps.setter
    def total_steps(self, total_steps: float) -> None:
        self._set_total_steps(total_steps, self._beta2s_of(self.optimizer))
        if self._wrote_last(self._last_lr):
            self._write(self.get_lr())

    def step(self, epoch: int | None = None) -> None:
        """Set every group's rate for the next optimizer step."""
        position = self._position_at(self.last_epoch + 1) if epoch is None else epoch
        self._require_length(position)  # raises while everything is still untouched
        if epoch is not None:
            self._since = (epoch, epoch)
        super().step(epoch)
        self._set_momentum()

    def jump(self, position: float) -> None:
        """Go to a place in the budget and set the rates there, as if the run had come to it step by step.

        Args:
            position: What has been used, in `unit`s.
        """
        if not is_number(position) or position < 0:
            raise ValueError(f"`ProfileLR.jump(position=...)` must be a number of at least 0, got {position!r}.")
        position = plain_number(position)
        self._require_length(position)
        if self.curve.unit == "steps":
            self.last_epoch = int(position)
        if position != self.position:  # to where it is: not even a rounding changes
            self._since = (self.last_epoch, position)
        self._write(self.get_lr())

    def cooldown(self, steps: float, curve: Literal["linear", "1-sqrt"] = "linear") -> None:
        """Finish: bring the rate down to its minimum within so many `unit`s from now on, whatever the profile says.

        Args:
            steps: How much of the budget that takes; afterwards the rate stays at the minimum.
            curve: `linear` or `1-sqrt`.
        """
        length = require_positive("ProfileLR.cooldown", "steps", steps)
        require_one_of("ProfileLR.cooldown", "curve", curve, ("linear", "1-sqrt"))
        if self._cooldown is not None:
            raise ValueError(
                f"`ProfileLR.cooldown(steps={steps})`: the schedule has been coming down since "
                f"{number_text(self._cooldown[0])} {self.curve.unit}, and is down at "
                f"{number_text(self._cooldown[0] + self._cooldown[2])}."
            )
        self._cooldown = (self.position, self.increment, length, curve)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Every group's rate at `position`; it never looks at the current one."""
        self._adopt_new_groups()
        if self.curve.is_untuned:
            factors = [self._factor(beta2) for beta2 in self._beta2s_of(self.optimizer)]
        else:
            factors = [self._factor()] * len(self.base_lrs)
        return [base * factor for base, factor in zip(self.base_lrs, factors, strict=True)]

    _get_closed_form_lr = get_lr

    def state_dict(self) -> dict[str, Any]:
        """Where the run is, in types that load with `weights_only=True`."""
        return {**{name: getattr(self, name) for name in _STATE}, "curve": self._said}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go to where the run was, and set the rates there.

        The curve remains this schedule's own, and so does a `total_steps` that its constructor was given; each with a
        warning if the checkpoint has another. In epochs, what a step uses is this run's, too.
        """
        if state_dict["curve"] != self._said:
            self._warn(f"was saved by {state_dict['curve']}, and goes on along {self._said}")
        rates_before, rates = self._last_lr, state_dict["_last_lr"]
        first_increment, total_steps = self._first_increment, self._length_after(state_dict)
        super().load_state_dict({name: state_dict[name] for name in _STATE})
        self._total_steps = total_steps
        if self.curve.unit == "epochs" and first_increment != self._first_increment:  # batches are cut otherwise now
            self._first_increment = self.increment = first_increment
        if len(rates) == len(self.optimizer.param_groups) and (
            self._wrote_last(rates_before) or self._wrote_last(rates)
        ):
            saved = (state_dict["curve"], state_dict["_total_steps"], state_dict["_increment"])
            is_unchanged = saved == (self._said, self._total_steps, self._increment)
            self._write(rates if is_unchanged else self.get_lr())

    def _length_after(self, state_dict: dict[str, Any]) -> float | None:
        """Which `total_steps` holds when this state is loaded."""
        own, saved = self._total_steps, state_dict["_total_steps"]
        if own is None or saved is None or own == saved:
            return saved if own is None else own
        if self._has_own_length:
            self._warn(
                f"has the total_steps that it was given, {number_text(own)}, where its checkpoint has "
                f"{number_text(saved)}"
            )
            return own
        self._warn(
            f"keeps the total_steps of its checkpoint, {number_text(saved)}, where this run's length is "
            f"{number_text(own)}; for that, give the schedule `total_steps={number_text(own)}`: on the command line "
            f"`--lr_scheduler.total_steps={number_text(own)}`, in YAML `total_steps: {number_text(own)}` among its "
            "arguments"
        )
        return saved

    def _position_at(self, epoch: int) -> float:
        """A product and no running sum, whose roundings would add up."""
        then, position = self._since
        return position + (epoch - then) * self._increment

    def _factor(self, beta2: float = 0.0) -> float:
        position = self.position
        if self._cooldown is None or position < self._cooldown[0]:
            return self.curve.factor(position, self.increment, self._total_steps, beta2)
        start, increment, length, curve = self._cooldown
        top = self.curve.factor(start, increment, self._total_steps, beta2)
        lowest = min(self.curve.min_ratio, top)
        return lowest + (top - lowest) * decayed(min((position - start) / length, 1.0), curve)

    def _set_momentum(self) -> None:
        momentum = self.curve.momentum(self.position, self._total_steps)
        if momentum is None:
            return
        for group, follows in zip(self.optimizer.param_groups, self._momenta_follow, strict=False):
            if follows:
                _set_momentum_of(group, momentum)

    def _write(self, rates: list[float | torch.Tensor]) -> None:
        groups = self.optimizer.param_groups
        for group, rate in zip(groups, rates, strict=True):
            if isinstance(group["lr"], torch.Tensor):
                group["lr"].fill_(float(rate))  # compiled optimizers hold on to the tensor itself
            else:
                group["lr"] = rate
        self._last_lr = [copied(group["lr"]) for group in groups]
        self._set_momentum()

    def _wrote_last(self, rates: list[Any]) -> bool:
        """Whether the groups' rates are those that this schedule has set, and not another's of a `SequentialLR`."""
        groups = self.optimizer.param_groups
        has_begun = self.last_epoch >= 0  # torch takes a step back from those that are to come
        return has_begun and len(rates) == len(groups) and all(map(_is_rate_of, groups, rates))

    def _adopt_new_groups(self) -> None:
        groups = self.optimizer.param_groups
        for group in groups[len(self.base_lrs) :]:
            if "initial_lr" not in group:
                self._warn_of_decayed(group)
                group["initial_lr"] = copied(group["lr"])
            self.base_lrs = [*self.base_lrs, group["initial_lr"]]
        for group in groups[len(self._momenta_follow) :]:
            self._momenta_follow = [*self._momenta_follow, "betas" in group or bool(group.get("momentum"))]

    def _warn_of_decayed(self, group: dict[str, Any]) -> None:
        lr = float(group["lr"])
        decayed_ones = [now for now, base in zip(self._last_lr, self.base_lrs, strict=False) if now != base]
        if lr in map(float, decayed_ones):
            self._warn(
                f"takes {lr:g} for the base rate of a new group, and that is where another group's rate is now: the "
                'new one decays twice. Pass a base rate: `add_param_group({"params": ..., "lr": ...})`, or '
                "`BaseFinetuning.unfreeze_and_add_param_group(..., lr=...)`"
            )

    def _set_total_steps(self, total_steps: float, beta2s: list[float]) -> None:
        unit = self.curve.unit
        whole = "whole " if unit in _WHOLE else ""
        if not is_number(total_steps) or total_steps <= 0 or (whole and total_steps != int(total_steps)):
            raise ValueError(
                f"`ProfileLR(total_steps=...)` must be a {whole}number of {unit} above 0, got {total_steps!r}. "
                "An endless run has no length: set `Trainer(max_steps=...)` or `max_epochs`."
            )
        self._total_steps = plain_number(total_steps)
        warmup = self.curve.warmup_length(beta2s)
        if warmup >= total_steps:
            self._warn(
                f"warms up for {number_text(warmup)} {unit} (`ProfileLR(warmup_steps="
                f'{number_text(self.curve.warmup_steps)}, warmup="{self.curve.warmup}")`) with `total_steps` set to '
                f"{number_text(total_steps)}: the run ends inside the warmup. Train longer or warm up for less"
            )

    def _require_length(self, position: float) -> None:
        is_there = self._total_steps is not None or self._cooldown is not None
        if is_there or not self.curve.needs_length or position <= self.curve.warmup_steps:
            return
        raise RuntimeError(
            f"`ProfileLR` does not know how long the run is, and {self.curve.profile!r} needs it after "
            f"{number_text(self.curve.warmup_steps)} {self.curve.unit}. Pass `ProfileLR(total_steps=...)`, or set "
            "`scheduler.total_steps = n` before training starts (in Lightning: `trainer.estimated_stepping_batches`)."
        )

    def _beta2s_of(self, optimizer: Optimizer) -> list[float]:
        """Those of all groups, where the warmup asks for them."""
        groups = optimizer.param_groups if self.curve.is_untuned else ()
        return [second_moment_beta(optimizer, group, self.curve.warmup) for group in groups]

    def _warn(self, what: str) -> None:
        warnings.warn(f"The learning-rate schedule {what}.", UserWarning, stacklevel=4)


def copied(rate: Any) -> Any:
    """A rate that does not change with the group's.

    Example:
        >>> copied(0.1)
        0.1
    """
    return rate.clone() if isinstance(rate, torch.Tensor) else rate


def _set_momentum_of(group: dict[str, Any], momentum: float) -> None:
    """In place where the optimizer keeps a tensor, which a captured step holds on to."""
    now = group["betas"][0] if "betas" in group else group["momentum"]
    if isinstance(now, torch.Tensor):
        now.fill_(momentum)
    elif "betas" in group:
        group["betas"] = (momentum, *group["betas"][1:])
    else:
        group["momentum"] = momentum


def _is_rate_of(group: dict[str, Any], rate: Any) -> bool:
    return float(group["lr"]) == float(rate)
