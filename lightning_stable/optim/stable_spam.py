# SPDX-License-Identifier: Apache-2.0
"""Stable-SPAM: AdamW behind two adaptive limits on the gradient, which forgets its momentum now and then."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_stable.functional.ada_clip import ada_clip, ada_clip_threshold
from lightning_stable.functional.ada_grad_norm import NormHistory, ada_grad_norm
from lightning_stable.functional.tensor_norms import local, reduce_over_shards, stacked
from lightning_stable.optim.arguments import require_fraction, require_steps
from lightning_stable.optim.chunks import (
    Extent,
    Scratch,
    clipped_square,
    compute_dtype,
    extent,
    extents,
    flat_chunks,
    is_small,
    largest_of,
)
from lightning_stable.optim.fused_adamw import adamw_
from lightning_stable.optim.moment_optimizer import Member, MomentDtype, MomentOptimizer
from lightning_stable.optim.moment_units import (
    MomentUnits,
    can_keep_units,
    new_units,
    read_units,
    without_units,
    write_units,
)

_PLAIN = MomentUnits()


class StableSPAM(MomentOptimizer):
    """AdamW with adaptive clipping of entries, adaptive normalisation of each tensor's gradient, and momentum resets.

        step t = 1, 2, ...;   per tensor: u gradients seen ever, s since the last reset
        t divisible by reset_interval:   m = v = 0, s = 0, and the bias correction starts over
        AdaClip:     M <- theta M + (1 - theta) max|g|,   T = M / (1 - theta^u);   g_i <- g_i T / max|g| where |g_i| > T
        AdaGN:       g <- g a / (sqrt(b) + eps) / ||g||, with a and b the running means of ||g|| and its square, whose
                     decay rates are a_t gamma1 and gamma2, each with its bias correction
        w <- w - lr weight_decay w
        m <- a_t beta1 m + (1 - a_t beta1) g,    v <- beta2 v + (1 - beta2) g^2
        w <- w - lr (m / c1) / (sqrt(v / c2) + eps)
        c1 = 1 - product of the a_t beta1 since the reset,   c2 = 1 - beta2^s
        a_t = eta_min + (1 - eta_min) (1 + cos(pi min(t / (T + 1), 1))) / 2,   T = total_steps;   1 without it

    Paper: Huang et al., "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam" (2025).

    Deviations from the official code: the update of the reset's own step uses the fresh moments, with bias correction
    1 (there: the old moments, corrected as if fresh). The corrections of AdaClip and AdaGN are those of what they have
    seen; there, clipping is off for hundreds of steps after each reset. The cosine stays at eta_min after the end;
    there, it rises again. Bias correction knows that beta1 changes. Every counter is in the `state_dict`. A tensor
    whose gradient holds NaN or infinity, or has a norm too large to be squared, is left out of the step as a whole.
    Gradients are left as they were. Largest entry and norm are those of the whole tensor where it is sharded. There is
    no `amsgrad`, whose maximum no reset reaches. In the state the moments are `exp_avg` times `exp_avg_unit`, and
    `exp_avg_sq` times `exp_avg_sq_unit`: large tensors on the host take gradients as they are, and AdaGN's factor goes
    into the units, which saves a pass.

    As AdaGN makes every tensor's gradient about 1 in norm, parameters of one element take steps of lr.

    Args:
        params: Parameters, or groups of them; a group can have every argument for itself.
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Added to square roots.
        weight_decay: Decoupled weight decay.
        gamma1: Decay rate of the mean norm. The official settings are 0.7 for 4 bit, 0.85 for bfloat16.
        gamma2: Decay rate of the mean squared norm: 0.9 for 4 bit, 0.99999 for bfloat16.
        theta: Decay rate of the mean largest entry.
        reset_interval: Steps from one reset to the next, `None` for no resets. The official settings are 500 to 1000.
        total_steps: Steps over which beta1 and gamma1 fall to `eta_min` times themselves; `None`: they stay.
        eta_min: See `total_steps`.
        moment_dtype: `"float32"` keeps the moments of bfloat16 and float16 parameters in float32; `"parameter"` in the
            parameters' precision, in which v can stand still.
        maximize: Ascend instead.

    Raises:
        ValueError: If an argument is out of its bounds, or a gradient is sparse.

    Example:
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = StableSPAM(model.parameters(), lr=1e-3, weight_decay=0.1)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
        weight_decay: float = 0.0,
        gamma1: float = 0.7,
        gamma2: float = 0.9,
        theta: float = 0.999,
        reset_interval: int | None = 1000,
        total_steps: int | None = None,
        eta_min: float = 0.5,
        moment_dtype: MomentDtype = "float32",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "gamma1": gamma1,
            "gamma2": gamma2,
            "theta": theta,
            "reset_interval": reset_interval,
            "total_steps": total_steps,
            "eta_min": eta_min,
            "moment_dtype": moment_dtype,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_fraction("StableSPAM", gamma1=group["gamma1"], gamma2=group["gamma2"], theta=group["theta"])
        require_steps("StableSPAM", 1, reset_interval=group["reset_interval"], total_steps=group["total_steps"])
        if not 0.0 <= group["eta_min"] <= 1.0:
            raise ValueError(f"`StableSPAM(eta_min=...)` must be from 0 to 1, got {group['eta_min']}.")

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        return {
            **super()._new_state(parameter, group),
            "beta1_product": torch.ones((), dtype=torch.float64),
            **new_units(),
            # AdaClip's mean of the largest entry and the gradients it has seen; then the `NormHistory` of AdaGN
            "statistics": torch.tensor([0, 0, 0, 0, 1, 1], dtype=torch.float64, device=parameter.device),
        }

    def _before(self, group: dict[str, Any]) -> None:
        if group["reset_interval"] is None or group["steps_taken"] % group["reset_interval"]:
            return
        states = [self.state[parameter] for parameter in group["params"] if parameter in self.state]
        for state in states:
            for name in self._moments:
                state[name].zero_()
            state["step"].zero_()
            state["beta1_product"].fill_(1.0)
        write_units(states, [_PLAIN] * len(states))

    def _step_group(self, group: dict[str, Any], members: list[Member]) -> None:
        scratch = Scratch()
        large, batches = _batches(members)
        self._step_large(large, group, scratch)
        for batch in batches:
            measured = extents([member.gradient for member in batch])
            together: dict[tuple[Any, ...], list[tuple[Member, _Limit]]] = {}
            limits = self._limits(group, batch, measured, scratch)
            for member, parts, limit in zip(batch, measured, limits, strict=True):
                if self._counts(member, limit, group) and self._can_join(member):
                    count = member.step, float(member.state["beta1_product"]), member.gradient.dtype
                    together.setdefault(count, []).append((member, limit))
                elif limit.finite:
                    self._step_limited(member, parts, limit, group, scratch)
            for pairs in together.values():
                self._step_together(pairs, group)

    def _step_large(self, members: list[Member], group: dict[str, Any], scratch: Scratch) -> None:
        """Update tensors of the host alone one by one, so that the second look at a gradient finds it in the cache."""
        if not members:
            return
        states = [member.state for member in members]
        every = [state["statistics"] for state in states]
        seen, units = torch.stack(every).tolist(), read_units(states)
        for index, member in enumerate(members):
            parts = [extent(chunk) for _, chunk in flat_chunks([], member.gradient)]
            limit, statistics = self._limit(group, member, parts, seen[index], scratch)
            if self._counts(member, limit, group):
                seen[index] = statistics
                units[index] = self._step_large_limited(member, parts, limit, units[index], group, scratch)
        torch._foreach_copy_(every, list(torch.tensor(seen, dtype=torch.float64).unbind()))
        write_units(states, units)

    def _counts(self, member: Member, limit: "_Limit", group: dict[str, Any]) -> bool:
        """Whether the step is one for this tensor; `step` was counted as if it were."""
        if limit.finite:
            member.state["beta1_product"].mul_(_betas(group)[0])
        else:
            member.state["step"] -= 1
        return limit.finite

    def _can_join(self, member: Member) -> bool:
        dtype = compute_dtype(member.parameter)
        tensors = [member.gradient, *self._tensors(member)]
        return is_small(member.gradient) and all(each.dtype == dtype and each.is_contiguous() for each in tensors)

    def _limits(
        self, group: dict[str, Any], members: list[Member], measured: list[list[Extent]], scratch: Scratch
    ) -> "list[_Limit]":
        """Let the statistics see this step's gradients, and return what is to be done to each gradient."""
        sources, size = [member.source for member in members], abs(members[0].factor)
        statistics = torch.stack([member.state["statistics"] for member in members])
        largest = _gathered([largest_of(parts) for parts in measured], sources, dist.ReduceOp.MAX)
        every_largest = _numbers(largest)

        def clipped_norm(threshold: Tensor) -> Tensor:
            bounds = zip(_numbers(threshold), every_largest, strict=True)
            squares = [
                clipped_square(member.gradient, parts, *bound, scratch)
                for member, parts, bound in zip(members, measured, bounds, strict=True)
            ]
            return _gathered(squares, sources, dist.ReduceOp.SUM).sqrt()

        threshold, norm, factor, seen = _follow(list(statistics.unbind(1)), largest, clipped_norm, size, group)
        finite = largest.isfinite() & norm.isfinite()
        seen = torch.where(finite.unsqueeze(1), torch.stack(seen, dim=1), statistics)
        torch._foreach_copy_([member.state["statistics"] for member in members], list(seen.unbind()))
        factor = torch.where(finite, factor * members[0].factor, torch.nan)  # NaN: left out entry by entry
        known = finite.tolist() if finite.device.type == "cpu" else [True] * len(members)
        each = zip(_numbers(threshold), every_largest, _numbers(factor), known, strict=True)
        return [_Limit(*limit) for limit in each]

    def _limit(
        self, group: dict[str, Any], member: Member, parts: list[Extent], statistics: list[float], scratch: Scratch
    ) -> "tuple[_Limit, list[float]]":
        """The same for one tensor of the host alone, with Python's numbers; returns the statistics, too."""
        largest = largest_of(parts)

        def clipped_norm(threshold: float) -> float:
            return math.sqrt(clipped_square(member.gradient, parts, threshold, largest, scratch))

        threshold, norm, factor, seen = _follow(statistics, largest, clipped_norm, abs(member.factor), group)
        finite = math.isfinite(largest) and math.isfinite(norm)
        return _Limit(threshold, largest, factor * member.factor, finite), seen

    def _step_large_limited(
        self,
        member: Member,
        parts: list[Extent],
        limit: "_Limit",
        units: MomentUnits,
        group: dict[str, Any],
        scratch: Scratch,
    ) -> MomentUnits:
        """Let the moments take the gradient as it is, where its size allows; returns the units they then have."""
        if not can_keep_units(limit.factor, limit.largest):
            self._step_limited(member, parts, limit, group, scratch)
            return _PLAIN
        change, units, betas = units.after(limit.factor, _betas(group))
        for (chunks, gradient), part in zip(flat_chunks(self._tensors(member), member.gradient), parts, strict=True):
            if change is not None:
                change.multiply(chunks[1], chunks[2])
            if part.largest > limit.threshold:
                gradient = ada_clip(gradient, limit.threshold, limit.largest, out=scratch.like(gradient))
            self._move([chunks[0]], [gradient], [chunks[1]], [chunks[2]], member, group, units, betas)
        return units

    def _step_limited(
        self, member: Member, parts: list[Extent], limit: "_Limit", group: dict[str, Any], scratch: Scratch
    ) -> None:
        tensors = self._tensors(member)
        without_units([member.state], [tensors[1]], [tensors[2]])
        for (chunks, gradient), part in zip(flat_chunks(tensors, member.gradient), parts, strict=True):
            on_host = gradient.device.type == "cpu"
            limited = scratch.like(gradient)
            if not on_host or part.largest > limit.threshold:
                gradient = ada_clip(gradient, limit.threshold, limit.largest, out=limited)
            torch.mul(gradient, limit.factor, out=limited)
            if on_host:  # and so known to be finite
                self._update(chunks[0], limited, chunks[1:], member, group)
            else:
                self._update_finite(chunks, limited, member, group)

    def _step_together(self, pairs: "list[tuple[Member, _Limit]]", group: dict[str, Any]) -> None:
        """Update small tensors that have taken equally many steps in one go."""
        clipped = [
            ada_clip(member.gradient, limit.threshold, limit.largest)
            if limit.largest > limit.threshold
            else member.gradient
            for member, limit in pairs
        ]
        limited = list(torch._foreach_mul(clipped, [limit.factor for _, limit in pairs]))
        members = [member for member, _ in pairs]
        exp_avgs, exp_avg_sqs = ([local(member.state[name]) for member in members] for name in self._moments)
        without_units([member.state for member in members], exp_avgs, exp_avg_sqs)
        self._move([member.parameter for member in members], limited, exp_avgs, exp_avg_sqs, members[0], group)

    def _update(
        self, parameter: Tensor, gradient: Tensor, moments: Sequence[Tensor], member: Member, group: dict[str, Any]
    ) -> None:
        self._move([parameter], [gradient], [moments[0]], [moments[1]], member, group)

    def _move(
        self,
        parameters: list[Tensor],
        gradients: list[Tensor],
        exp_avgs: list[Tensor],
        exp_avg_sqs: list[Tensor],
        member: Member,
        group: dict[str, Any],
        units: MomentUnits = _PLAIN,
        betas: tuple[float, float] | None = None,
    ) -> None:
        """Update tensors that have taken as many steps as `member`; `units` are those after the step."""
        lr = float(group["lr"])
        correction2 = math.sqrt(1 - group["betas"][1] ** member.step)
        scale2 = correction2 / math.sqrt(units.exp_avg_sq)
        adamw_(
            parameters,
            gradients,
            exp_avgs,
            exp_avg_sqs,
            step_size=lr * units.exp_avg * scale2 / (1 - float(member.state["beta1_product"])),
            betas=_betas(group) if betas is None else betas,
            eps=group["eps"] * scale2,
            decay=lr * group["weight_decay"],
        )

    def _tensors(self, member: Member) -> list[Tensor]:
        return [member.parameter, *(local(member.state[name]) for name in self._moments)]


@dataclass(frozen=True, slots=True)
class _Limit:
    """What is to be done to one gradient as it is found in `.grad`."""

    threshold: Any
    largest: Any
    factor: Any
    finite: bool


def _follow(
    statistics: list[Any], largest: Any, clipped_norm: Callable[[Any], Any], size: float, group: dict[str, Any]
) -> tuple[Any, Any, Any, list[Any]]:
    """AdaClip and AdaGN of gradients found in `.grad` as g / size: the threshold there, norm, factor, and statistics.

    Numbers, or tensors of one per gradient; `clipped_norm` returns the norm in `.grad` after clipping at a threshold.
    """
    mean, count, *history = statistics
    mean, threshold = ada_clip_threshold(size * largest, mean, count + 1, group["theta"])
    norm = size * clipped_norm(threshold / size)
    gamma1 = group["gamma1"] * _beta_scale(group)
    history, factor = ada_grad_norm(norm, NormHistory(*history), gamma1, group["gamma2"], group["eps"])
    return threshold / size, norm, factor, [mean, count + 1, *history]


def _is_on_host_alone(member: Member) -> bool:
    """Whether nobody else has a shard of it, and its numbers can be read without waiting for an accelerator."""
    return member.gradient.device.type == "cpu" and member.source is member.gradient


def _batches(members: list[Member]) -> tuple[list[Member], list[list[Member]]]:
    """The large ones of the host alone, and those to be looked at together before any of them is moved."""
    large, batches = [], {}
    for member in members:
        alone = _is_on_host_alone(member)
        if alone and not is_small(member.gradient):
            large.append(member)
        else:
            batches.setdefault((member.gradient.device, alone), []).append(member)
    return large, list(batches.values())


def _gathered(values: list[Any], sources: list[Tensor], operation: Any) -> Tensor:
    """One value per tensor, combined over its shards."""
    if any(isinstance(value, Tensor) for value in values):
        together = stacked([torch.as_tensor(value) for value in values], sources)
    else:
        together = torch.tensor(values, dtype=torch.float64, device=sources[0].device)
    return reduce_over_shards(together, sources, operation)


def _numbers(values: Tensor) -> Any:
    """Python numbers, or where that would mean waiting for an accelerator, tensors."""
    return values.tolist() if values.device.type == "cpu" else list(values.float().unbind())


def _betas(group: dict[str, Any]) -> tuple[float, float]:
    """The decay rates of the moments in this step."""
    return group["betas"][0] * _beta_scale(group), group["betas"][1]


def _beta_scale(group: dict[str, Any]) -> float:
    """What beta1 and gamma1 are multiplied by in this step."""
    total_steps, eta_min = group["total_steps"], group["eta_min"]
    if total_steps is None:
        return 1.0
    progress = min(group["steps_taken"] / (total_steps + 1), 1.0)
    return eta_min + (1 - eta_min) * (1 + math.cos(math.pi * progress)) / 2
