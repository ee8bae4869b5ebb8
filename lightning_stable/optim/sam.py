# SPDX-License-Identifier: Apache-2.0
"""SAM: step with the gradient found a little uphill, around any optimizer."""

import functools
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_stable.optim.arguments import require_rates
from lightning_stable.optim.base_optimizer import base_optimizer as make_base
from lightning_stable.optim.chunks import compute_dtype
from lightning_stable.optim.frozen_statistics import FrozenStatistics

Phase = Literal["ascend", "descend"]


class SAM(Optimizer):
    """Sharpness-aware minimization: any optimizer, stepping from w with the gradient found at w + e, a little uphill.

        g = gradient at w;   t = |w| + eta where `adaptive`, else 1
        e = rho t^2 g / ||t g||             the norm is taken over all perturbed parameters together
        w <- base optimizer's step from w with the gradient at w + e

    Paper: Foret et al., "Sharpness-Aware Minimization for Efficiently Improving Generalization" (ICLR 2021); for
    `adaptive` Kwon et al., "ASAM" (ICML 2021); for `perturb="norm"` Mueller et al., "Normalization Layers Are All That
    Sharpness-Aware Minimization Needs" (NeurIPS 2023).

    `step(closure)` calls the closure twice, so a step costs two passes; Lightning's automatic optimization needs
    nothing else. In manual optimization call `ascend()` after the first backward and `step()` after the second. The
    second pass leaves running statistics alone: after it, the buffers named `running_...` and `num_batches_tracked` of
    every module that was called are put back. After it w is put back too, from a copy: bit for bit.

    `phase` is "ascend" while the closure runs at w, "descend" while it runs at w + e, else `None`. Whatever sits in the
    closure happens twice: `training_step` with what it logs (log at w with
    `if self.trainer.optimizers[0].phase == "ascend"`), the hook `on_before_optimizer_step`, and Lightning's clipping,
    which by norm leaves e as it is. Gradients are synchronized in both passes, so all ranks share one e.

    Deviations: no small number is added to the norm; with a norm that is 0, NaN or infinite, e = 0. ASAM's code adds
    eta to |w| of weights only and leaves t = 1 for biases; here all parameters are alike. With DDP the paper's code
    has each rank climb its own gradient (m-sharpness); that is not offered. Dropout draws new masks in the second
    pass. With rho = 0 there is one pass, and all is as with the base optimizer alone, bit for bit.

    Not supported: gradient accumulation and a GradScaler ("16-mixed"), both of which are refused in the first step they
    touch; FSDP's first version, where no rank knows the norm of all shards (the second, with DTensor, is fine).

    Args:
        params: Parameters, named parameters, or groups of them; a group can have `rho`, `adaptive`, `eta` and
            `perturb` for itself, the last also as True or False, besides the base optimizer's arguments.
        base_optimizer: Dotted name of the optimizer class that takes the step, or the class. It is kept as `base`, and
            has the state and the parameter groups; hooks on `state_dict` and `load_state_dict` are registered there.
        rho: Length of e. Default: the paper's; with `adaptive` about ten times as much is usual.
        adaptive: Whether to climb in proportion to the weights' size (ASAM).
        perturb: `"all"` parameters, or those of `"norm"` layers only: groups with `role="norm"` where groups have a
            `role`; else, of named parameters, those of layers that hold nothing with two axes or more; else parameters
            with fewer than two axes, the biases of all layers among them.
        lr: Learning rate of the base optimizer.
        weight_decay: Weight decay of the base optimizer; `None` for its own default.
        eta: Added to |w| with `adaptive`, so that weights at 0 move too. Default: the paper's.
        base_args: Further arguments of the base optimizer, such as `momentum`.

    Raises:
        ValueError: If an argument is out of its bounds, no parameter would be perturbed, the base optimizer does not
            fit its arguments or cannot step without a closure, or a gradient is sparse.
        RuntimeError: If a step comes without a closure, or with one that adds to gradients that it found.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = SAM(model.parameters(), "torch.optim.SGD", lr=0.1, base_args={"momentum": 0.9})
        >>> def closure():
        ...     optimizer.zero_grad()
        ...     loss = model(torch.ones(1, 4)).square().sum()
        ...     loss.backward()
        ...     return loss
        >>> loss = optimizer.step(closure)
        >>> bool(closure() < loss)
        True
    """

    # Whoever stands in front of `step` must hand the closure on, or stand in front of `base.step`, which needs none.
    needs_closure: ClassVar[bool] = True

    def __init__(
        self,
        params: ParamsT,
        base_optimizer: str | type[Optimizer] = "torch.optim.SGD",
        rho: float = 0.05,
        adaptive: bool = False,
        perturb: Literal["all", "norm"] = "all",
        lr: float | Tensor = 1e-3,
        weight_decay: float | None = None,
        eta: float = 0.01,
        base_args: dict[str, Any] | None = None,
    ) -> None:
        self.base = make_base("SAM", params, base_optimizer, lr, weight_decay, base_args)
        self._own = {"rho": rho, "adaptive": adaptive, "eta": eta, "perturb": perturb}
        self._passes = _Passes()
        super().__init__(self.base.param_groups, {**self.base.defaults, **self._own})
        self._share()
        if not any(True for _ in self._perturbed()):
            raise ValueError(
                f"`SAM(perturb=...)` must leave at least one parameter to perturb, got {perturb!r}, which fits none. "
                'Give groups `perturb=True`, or use `perturb="all"`.'
            )

    @property
    def phase(self) -> Phase | None:
        """Which of its two passes the closure is in: "ascend" at w, "descend" at w + e, `None` outside."""
        return self._passes.phase

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step, and return what the closure returned at w; after `ascend()` the closure is not needed."""
        if self._passes.is_uphill:
            loss = None if closure is None else self._evaluate(closure, "descend")
            self.descend()
            return loss
        if closure is None:
            self._require_nothing_to_climb()
            self.base.step()
            return None
        if not any(group["rho"] and group["perturb"] for group in self.base.param_groups):
            loss = self._evaluate(closure, "descend")
            self.base.step()
            return loss
        loss = self._evaluate_from_zero(closure)
        try:
            self.ascend()
            self._evaluate(closure, "descend")
        finally:
            self.restore()
        self.base.step()
        return loss

    @torch.no_grad()
    def ascend(self) -> None:
        """Move to w + e by the gradients there are, and forget these; the next `step()`, or `descend()`, is from w."""
        if self._passes.is_uphill:
            raise RuntimeError(
                "`SAM.ascend()` must be followed by `step()`, `descend()` or `restore()` before it is called again."
            )
        climbers = self._climbers()
        norm = _norm(climbers)
        self._passes.begin([climber.parameter for climber in climbers])
        for climber in climbers:
            climber.move(norm)
        self.base.zero_grad()

    @torch.no_grad()
    def descend(self) -> None:
        """Go back to w and step from there with the gradients found at w + e."""
        if not self._passes.is_uphill:
            raise RuntimeError("`SAM.descend()` must come after `ascend()` and a backward pass at w + e.")
        self.restore()
        self.base.step()

    @torch.no_grad()
    def restore(self) -> None:
        """Go back to w, and put the running statistics back, without a step; where nothing is perturbed do nothing."""
        self._passes.end()

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Forget the gradients."""
        self._passes.zeroed = True
        super().zero_grad(set_to_none)

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group to the base optimizer, with the arguments of SAM that it lacks."""
        groups = self.base.param_groups
        is_new = all(group is not param_group for group in groups)
        if is_new:
            self.base.add_param_group(param_group)
        try:
            self._complete(param_group)
        except ValueError:
            if is_new:
                del groups[-1]
            raise

    def state_dict(self) -> dict[str, Any]:
        """The state of the base optimizer: SAM has none of its own but its arguments, which are in the groups."""
        return self.base.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load the state of a SAM, or of a plain optimizer of the base's class."""
        self.base.load_state_dict(state_dict)
        self._share()

    def __getstate__(self) -> dict[str, Any]:
        return {**super().__getstate__(), "base": self.base, "_own": self._own}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self._passes = _Passes()
        self._share()

    def _share(self) -> None:
        """Have one set of groups and one state with the base optimizer, which makes new ones when it loads."""
        self.param_groups = self.base.param_groups
        self.state = self.base.state
        for group in self.param_groups:
            self._complete(group)

    def _complete(self, group: dict[str, Any]) -> None:
        for name, value in {**self.base.defaults, **self._own}.items():
            group.setdefault(name, value)
        require_rates("SAM", group, rho=group["rho"], eta=group["eta"])
        if group["perturb"] not in ("all", "norm", True, False):
            raise ValueError(
                f'`SAM(perturb=...)` must be "all" or "norm", or in a group True or False, got {group["perturb"]!r}.'
            )

    def _perturbed(self) -> Iterator[tuple[dict[str, Any], Tensor]]:
        groups = self.base.param_groups
        matrices = {
            _layer(name)
            for group in groups
            for name, parameter in zip(group.get("param_names", ()), group["params"], strict=False)
            if parameter.ndim >= 2
        }
        for group in groups:
            names = group.get("param_names") or [None] * len(group["params"])
            for name, parameter in zip(names, group["params"], strict=True):
                if _is_perturbed(group, name, parameter, matrices):
                    yield group, parameter

    def _climbers(self) -> list["_Climber"]:
        return [
            _Climber(parameter, parameter.grad, group)
            for group, parameter in self._perturbed()
            if parameter.grad is not None and group["rho"]
        ]

    def _evaluate(self, closure: Callable[[], Any], phase: Phase) -> Any:
        self._passes.phase = phase
        try:
            with torch.enable_grad():
                return closure()
        finally:
            self._passes.phase = None

    def _evaluate_from_zero(self, closure: Callable[[], Any]) -> Any:
        """Evaluate at w, and refuse a closure that adds to old gradients: the second pass would lack these."""
        parameters = (parameter for group in self.base.param_groups for parameter in group["params"])
        holder = next((parameter for parameter in parameters if parameter.grad is not None), None)
        old = None if holder is None else holder.grad
        self._passes.zeroed = False
        loss = self._evaluate(closure, "ascend")
        if holder is not None and holder.grad is old and not self._passes.zeroed:
            raise RuntimeError(
                "`SAM.step(closure=...)` must start from no gradients, and this closure kept those it found. With "
                "Lightning set `Trainer(accumulate_grad_batches=1)` and use larger batches; in manual optimization "
                "call `ascend()` after the first backward; in a loop of your own call `zero_grad()` in the closure."
            )
        return loss

    def _require_nothing_to_climb(self) -> None:
        if not _norm(self._climbers()) == 0:  # NaN too
            raise RuntimeError(
                "`SAM.step(closure=...)` must be a function that computes the gradients, which SAM calls twice, got "
                'None. A GradScaler steps like this: set `Trainer(precision="bf16-mixed")` or "32-true" in place of '
                '"16-mixed". Where you compute both gradients yourself, call `ascend()` between them.'
            )


class _Passes:
    """What the two passes keep, apart from the optimizer, so that Lightning's proxy of it sees the same."""

    def __init__(self) -> None:
        self.phase: Phase | None = None
        self.zeroed = False  # whether `zero_grad` was called
        self._weights: list[tuple[Tensor, Tensor]] | None = None
        self._statistics = FrozenStatistics()

    @property
    def is_uphill(self) -> bool:
        return self._weights is not None

    def begin(self, parameters: list[Tensor]) -> None:
        self._weights = [(parameter, parameter.clone()) for parameter in parameters]
        self._statistics.freeze()
        self.phase = "descend"

    def end(self) -> None:
        for parameter, before in self._weights or ():
            parameter.copy_(before)
        self._statistics.restore()
        self.phase = self._weights = None


@dataclass(frozen=True, slots=True)
class _Climber:
    """A parameter to be perturbed."""

    parameter: Tensor
    gradient: Tensor
    group: dict[str, Any]

    def scaled(self, tensor: Tensor) -> Tensor:
        """Return t times `tensor`."""
        dtype = compute_dtype(self.parameter)
        if not self.group["adaptive"]:
            return tensor.to(dtype)
        return tensor.to(dtype) * (self.parameter.to(dtype).abs() + self.group["eta"])

    def norm(self) -> Tensor:
        if self.gradient.is_sparse:
            raise ValueError(
                "`SAM(params=...)` must have dense gradients; that of a parameter of shape "
                f"{tuple(self.parameter.shape)} is sparse. Use `nn.Embedding(sparse=False)`, or a group with "
                "`perturb=False`."
            )
        norm: Any = torch.linalg.vector_norm(self.scaled(self.gradient))
        return norm.full_tensor() if hasattr(norm, "full_tensor") else norm  # over all shards

    def move(self, norm: Tensor) -> None:
        sign = -1.0 if self.group.get("maximize") else 1.0
        norm = norm.to(self.parameter.device)
        length = sign * self.group["rho"] / norm
        is_usable = norm.isfinite() & length.isfinite()
        step = self.scaled(self.scaled(self.gradient)) * length
        self.parameter.add_(torch.where(is_usable, step, 0.0))


def _norm(climbers: list[_Climber]) -> Tensor:
    if not climbers:
        return torch.zeros(())
    norms = [climber.norm() for climber in climbers]
    dtype = functools.reduce(torch.promote_types, (norm.dtype for norm in norms))
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0].device, dtype) for norm in norms]))


def _is_perturbed(group: dict[str, Any], name: str | None, parameter: Tensor, matrices: set[str]) -> bool:
    if group["perturb"] != "norm":
        return bool(group["perturb"])
    if "role" in group:
        return group["role"] == "norm"
    return parameter.ndim < 2 and (name is None or _layer(name) not in matrices)


def _layer(name: str) -> str:
    return name.rpartition(".")[0]
