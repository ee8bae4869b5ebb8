# SPDX-License-Identifier: Apache-2.0
"""Veto one optimizer step, or scale its learning rate, without touching optimizer or scheduler.

`optimizer.step` is wrapped on the instance. Its closure runs first (so that the gradients exist), then

    vetoed:      nothing moves: parameters and optimizer state are exactly as they were
    otherwise:   the functions in `before_step` are called, then every group's lr is multiplied by the product of all
                 scales, only while the step runs

Why so, and not otherwise: zeroed gradients still move Adam; gradients set to `None` break fused optimizers under a
GradScaler; an lr written into the group is forgotten by every scheduler in closed form.

Deviations: an optimizer whose `step` demands a closure (LBFGS) evaluates it several times and is passed through
with scaling but without veto. `SAM` is gated at its base optimizer's step; others that take `closure=None` but cannot
do without one are not supported. A fused optimizer under a GradScaler is called also when the scaler found an inf, and
skips by itself: `steps_taken` counts that step, `before_step` is not called for it.
"""

import functools
import inspect
import types
from collections.abc import Callable
from typing import Any

import torch
from torch.optim import Optimizer

_ATTRIBUTE = "_lightning_stable_step_gate"


class StepGate:
    """The gate in front of one optimizer's `step`; several users share one gate.

    Args:
        optimizer: The optimizer whose `step` is wrapped. Use `StepGate.attach`, which finds the gate it has.

    Example:
        >>> parameter = torch.nn.Parameter(torch.ones(2))
        >>> optimizer = torch.optim.SGD([parameter], lr=0.5)
        >>> gate = StepGate.attach(optimizer, user="example")
        >>> parameter.grad = torch.ones(2)
        >>> gate.veto = True
        >>> optimizer.step()
        >>> parameter.tolist()
        [1.0, 1.0]
        >>> gate.veto = False
        >>> gate.scales["example"] = 0.5
        >>> optimizer.step()
        >>> parameter.tolist(), optimizer.param_groups[0]["lr"]
        ([0.75, 0.75], 0.5)
        >>> gate.detach(user="example")
    """

    def __init__(self, optimizer: Optimizer) -> None:
        self.optimizer = optimizer
        self.veto = False
        self.scales: dict[str, float] = {}
        self.before_step: dict[str, Callable[[], None]] = {}  # called right before a step that will move something
        self.steps_vetoed = 0
        self.steps_taken = 0
        self._users: set[str] = set()
        self._step = optimizer.step  # the bound method as found, schedulers' own wrapping included
        self._was_on_instance = "step" in vars(optimizer)
        closure = inspect.signature(optimizer.step).parameters.get("closure")
        self._needs_closure = closure is not None and closure.default is inspect.Parameter.empty
        self._own_step = self._wrapped()

    @classmethod
    def attach(cls, optimizer: Optimizer, user: str) -> "StepGate":
        """Return the gate of `optimizer`, wrapping its `step` if nobody has yet."""
        optimizer = _gated(optimizer)
        gate = cls.of(optimizer)
        if gate is None:
            gate = cls(optimizer)
            setattr(optimizer, _ATTRIBUTE, gate)
            optimizer.step = gate._own_step  # pyright: ignore[reportAttributeAccessIssue]
        gate._users.add(user)
        return gate

    @staticmethod
    def of(optimizer: Optimizer) -> "StepGate | None":
        """Return the gate of `optimizer`, or `None` if it has none."""
        return getattr(_gated(optimizer), _ATTRIBUTE, None)

    def detach(self, user: str) -> None:
        """Forget `user`, its scale and its function; the last user's going unwraps `step`."""
        self._users.discard(user)
        self.scales.pop(user, None)
        self.before_step.pop(user, None)
        if self._users or getattr(self.optimizer, _ATTRIBUTE, None) is not self:
            return
        self.veto = False
        delattr(self.optimizer, _ATTRIBUTE)
        if vars(self.optimizer).get("step") is not self._own_step:
            return  # somebody, a scheduler say, has wrapped us since: stay underneath and pass everything on
        if self._was_on_instance:
            self.optimizer.step = self._step  # pyright: ignore[reportAttributeAccessIssue]
        else:
            del self.optimizer.step

    @property
    def scale(self) -> float:
        """The product of all users' learning-rate scales."""
        product = 1.0
        for scale in self.scales.values():
            product *= scale
        return product

    def mark_called(self) -> None:
        """Let schedulers believe that the optimizer has stepped: they warn of a `step()` that never came."""
        self.optimizer._opt_called = True  # pyright: ignore[reportAttributeAccessIssue]

    def _wrapped(self) -> Any:
        # schedulers made later re-bind `step.__func__`, so it must be a bound method, with the marks torch left on it
        inner = getattr(self._step, "__func__", self._step)

        @functools.wraps(inner)
        def step(_: Optimizer, closure: Callable[[], Any] | None = None, **kwargs: Any) -> Any:
            return self._gated_step(closure, **kwargs)

        return types.MethodType(step, self.optimizer)

    def _gated_step(self, closure: Callable[[], Any] | None, **kwargs: Any) -> Any:
        if self._needs_closure:
            return self._scaled_step(closure, **kwargs)
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.veto:
            self.steps_vetoed += 1
            self.mark_called()
            return loss
        result = self._scaled_step(None, **kwargs)
        return result if closure is None else loss

    def _scaled_step(self, closure: Callable[[], Any] | None, **kwargs: Any) -> Any:
        self.steps_taken += 1
        if self.before_step and not _found_inf(self.optimizer):
            for prepare in list(self.before_step.values()):
                prepare()
        scale = self.scale
        args = () if closure is None else (closure,)
        if scale == 1.0:
            return self._step(*args, **kwargs)
        before = [_scaled(group, scale) for group in self.optimizer.param_groups]
        try:
            return self._step(*args, **kwargs)
        finally:
            for group, lr in zip(self.optimizer.param_groups, before, strict=True):
                _restore(group, lr)


def _gated(optimizer: Optimizer) -> Optimizer:
    """The optimizer whose step moves something: `SAM` needs its closure, and steps through a base of its own."""
    return getattr(optimizer, "base", optimizer) if getattr(optimizer, "needs_closure", False) else optimizer


def _found_inf(optimizer: Optimizer) -> bool:
    """Whether a GradScaler has told a fused optimizer to skip the coming step."""
    found_inf = getattr(optimizer, "found_inf", None)
    return found_inf is not None and bool(found_inf)


def _scaled(group: dict[str, Any], scale: float) -> Any:
    lr = group["lr"]
    if isinstance(lr, torch.Tensor):  # capturable optimizers hold on to the tensor itself
        before = lr.clone()
        lr.mul_(scale)
        return before
    group["lr"] = lr * scale
    return lr


def _restore(group: dict[str, Any], lr: Any) -> None:
    if isinstance(lr, torch.Tensor):
        group["lr"].copy_(lr)
    else:
        group["lr"] = lr
