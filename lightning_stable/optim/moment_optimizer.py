# SPDX-License-Identifier: Apache-2.0
"""What the optimizers of this room have in common: everything but the equations."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar, Literal, get_args

import torch
from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_stable.functional.tensor_norms import local
from lightning_stable.optim.arguments import require_rates
from lightning_stable.optim.chunks import compute_dtype, flat_chunks

MomentDtype = Literal["float32", "parameter"]


@dataclass(frozen=True, slots=True)
class Member:
    """A parameter that has a gradient in this step: local tensors, also where the parameter is sharded."""

    parameter: Tensor
    gradient: Tensor  # only to be read
    source: Tensor  # `.grad` itself, a DTensor where it is sharded
    factor: float  # what to multiply it by: the sign of `maximize`, the scale of a GradScaler
    state: dict[str, Any]
    index: int  # of the parameter, counted over all groups

    @property
    def step(self) -> int:
        """Updates of this parameter since bias correction began, this one included."""
        return int(self.state["step"])


class MomentOptimizer(Optimizer, ABC):
    """An optimizer that moves each entry of a parameter by its own gradient and moments.

    A subclass names its moments and says in `_update` what one step does to flat chunks of them. It gets from here:
    closures, torch's hooks, parameter groups added later, `maximize`, gradients that are missing, not contiguous or
    of another precision, sharded parameters (DTensor), moments in float32 under parameters of less, and their
    precision kept by `load_state_dict`.

    An entry whose gradient is NaN, infinite or too large to be squared (above 1.8e19 in float32) is left out of the
    step: parameter and moments stay as they are.

    A GradScaler unscales and skips from outside, so that clipping works as usual. Where somebody sets the attributes
    `grad_scale` and `found_inf`, as torch does for fused optimizers, they are honoured.

    Deviations from torch's optimizers: there is no `foreach`, `fused`, `capturable` or `differentiable` to choose;
    steps are counted on the host, so a step cannot be captured into a CUDA graph, and says so.

    Args:
        params: Parameters, or groups of them.
        defaults: The arguments a group can have for itself: at least `lr`, `moment_dtype` and `maximize`.

    Raises:
        ValueError: If there is nothing to optimize, or a group's argument is out of its bounds.

    Example:
        >>> from lightning_stable.optim import SPAM
        >>> issubclass(SPAM, MomentOptimizer)
        True
    """

    _moments: ClassVar[tuple[str, ...]] = ("exp_avg", "exp_avg_sq")
    grad_scale: Tensor | None = None
    found_inf: Tensor | None = None

    def __init__(self, params: ParamsT, defaults: dict[str, Any]) -> None:
        if not isinstance(params, Tensor):
            params = self._listed(params)  # a generator can be read once
            if not params:
                raise ValueError(f"`{type(self).__name__}(params=...)` must hold at least one parameter, got none.")
        super().__init__(params, {**defaults, "steps_taken": 0})

    def add_param_group(self, param_group: dict[str, Any]) -> None:
        """Add a group, which joins the count of steps where the others are."""
        super().add_param_group(param_group)
        group = self.param_groups[-1]
        try:
            self._check(group)
            for parameter in group["params"]:
                self._check_parameter(parameter)
        except ValueError:
            del self.param_groups[-1]
            raise
        group["steps_taken"] = max(other["steps_taken"] for other in self.param_groups)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Fill in what a state of another version, or of another optimizer, does not have."""
        super().__setstate__(state)
        for group in self.param_groups:
            for name in self.defaults.keys() - {"differentiable"}:  # which torch adds and we do not have
                group.setdefault(name, self.defaults[name])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Load, and keep the precision of the moments: torch alone would cast them to that of the parameters."""
        super().load_state_dict(state_dict)
        positions = [position for group in state_dict["param_groups"] for position in group["params"]]
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for position, parameter in zip(positions, parameters, strict=True):
            for name, saved in state_dict["state"].get(position, {}).items():
                if isinstance(saved, Tensor) and self.state[parameter][name].dtype != saved.dtype:
                    device = parameter.device if saved.ndim else "cpu"  # numbers are read on the host
                    self.state[parameter][name] = saved.detach().clone().to(device)

    @torch.no_grad()
    def step(self, closure: Callable[[], Any] | None = None) -> Any:  # pyright: ignore[reportIncompatibleMethodOverride]
        """Take one step, and return what the closure returned."""
        loss = None
        if closure is not None:
            with torch.enable_grad():
                loss = closure()
        if self.found_inf is not None and bool(self.found_inf):
            return loss
        if torch.cuda.is_available() and torch.cuda.is_current_stream_capturing():
            raise RuntimeError(f"`{type(self).__name__}` counts steps on the host: a CUDA graph cannot capture it.")
        self._refuse_sparse_gradients()
        index = 0
        for group in self.param_groups:
            group["steps_taken"] += 1
            self._before(group)
            self._step_group(group, self._members(group, index))
            index += len(group["params"])
        return loss

    @abstractmethod
    def _update(
        self, parameter: Tensor, gradient: Tensor, moments: Sequence[Tensor], member: Member, group: dict[str, Any]
    ) -> None:
        """Move one flat chunk and its moments in place; the gradient is finite and must not be changed."""

    def _check(self, group: dict[str, Any]) -> None:
        """Refuse a group whose arguments are out of their bounds."""
        require_rates(type(self).__name__, group)
        if group["moment_dtype"] not in get_args(MomentDtype):
            raise ValueError(
                f'`{type(self).__name__}(moment_dtype=...)` must be "float32" or "parameter", '
                f"got {group['moment_dtype']!r}."
            )

    def _before(self, group: dict[str, Any]) -> None:
        """Do what a step does first, whether or not a parameter has a gradient."""

    def _step_group(self, group: dict[str, Any], members: list[Member]) -> None:
        for member in members:
            self._step_member(member, group)

    def _step_member(self, member: Member, group: dict[str, Any]) -> None:
        """Update a parameter chunk by chunk, without the entries whose gradient is not finite."""
        self._step_flat([member.parameter, *(local(member.state[name]) for name in self._moments)], member, group)

    def _step_flat(self, tensors: list[Tensor], member: Member, group: dict[str, Any]) -> None:
        for chunks, gradient in flat_chunks(tensors, member.gradient):
            scaled = gradient if member.factor == 1.0 else gradient * member.factor
            self._update_finite(chunks, scaled, member, group)

    def _update_finite(self, chunks: list[Tensor], gradient: Tensor, member: Member, group: dict[str, Any]) -> None:
        if surely_finite(gradient):
            self._update(chunks[0], gradient, chunks[1:], member, group)
            return
        finite = gradient.square().isfinite()  # what cannot be squared would stay in v for good
        before = [chunk.clone() for chunk in chunks]
        self._update(chunks[0], torch.where(finite, gradient, 0.0), chunks[1:], member, group)
        for chunk, old in zip(chunks, before, strict=True):
            torch.where(finite, chunk, old, out=chunk)

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        dtype = compute_dtype(parameter) if group["moment_dtype"] == "float32" else parameter.dtype
        zeros = {name: torch.zeros_like(parameter, dtype=dtype, memory_format=torch.contiguous_format)
                 for name in self._moments}  # fmt: skip
        return {"step": torch.zeros((), dtype=torch.float32), **zeros}

    def _members(self, group: dict[str, Any], first_index: int) -> list[Member]:
        members = []
        factor = (-1.0 if group["maximize"] else 1.0) / (1.0 if self.grad_scale is None else float(self.grad_scale))
        for index, parameter in enumerate(group["params"], first_index):
            if parameter.grad is None:
                continue
            state = self.state[parameter]
            if not state:
                state.update(self._new_state(parameter, group))
            members.append(Member(local(parameter), local(parameter.grad), parameter.grad, factor, state, index))
        if members:
            torch._foreach_add_([member.state["step"] for member in members], 1)
        return members

    def _listed(self, params: Any) -> list[Any]:
        if not isinstance(params, Iterable):
            raise TypeError(
                f"`{type(self).__name__}(params=...)` must be parameters or groups of them, such as "
                f"`model.parameters()`, got {type(params).__name__}."
            )
        return list(params)

    def _refuse_sparse_gradients(self) -> None:
        parameters = [parameter for group in self.param_groups for parameter in group["params"]]
        for index, parameter in enumerate(parameters):
            if parameter.grad is not None and parameter.grad.layout != torch.strided:
                raise ValueError(
                    f"`{type(self).__name__}(params=...)` must have dense gradients; that of parameter {index}, of "
                    f"shape {tuple(parameter.shape)}, is sparse. Use `nn.Embedding(sparse=False)`."
                )

    def _check_parameter(self, parameter: Tensor) -> None:
        if parameter.is_complex() or not parameter.is_floating_point():
            raise ValueError(
                f"`{type(self).__name__}(params=...)` must be real floating-point tensors, got one of "
                f"{parameter.dtype} and shape {tuple(parameter.shape)}."
            )


def surely_finite(tensor: Tensor) -> bool:
    """Whether the squares of a flat tensor are known to be finite; nobody waits for an accelerator to tell.

    Args:
        tensor: One axis, contiguous.

    Example:
        >>> surely_finite(torch.tensor([1.0, torch.nan]))
        False
    """
    if tensor.device.type != "cpu":
        return False
    total = torch.dot(tensor, tensor).isfinite()  # one pass; the sum may overflow, hence the second
    return bool(total) or bool(tensor.square().isfinite().all())
