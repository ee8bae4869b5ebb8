# SPDX-License-Identifier: Apache-2.0
"""LAMB: Adam whose step on each tensor is as long as the tensor's norm says, for very large batches."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_stable.functional.tensor_norms import local, reduce_over_shards, stacked
from lightning_stable.optim.chunks import flat_chunks
from lightning_stable.optim.moment_optimizer import Member, MomentDtype, MomentOptimizer, surely_finite


class LAMB(MomentOptimizer):
    """Adam with a trust ratio: every tensor moves by lr times its own norm.

        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2
        u = (m / (1 - beta1^t)) / (sqrt(v / (1 - beta2^t)) + eps) + weight_decay w
        w <- w - lr ||w|| / ||u|| u      the ratio is 1 where ||w|| or ||u|| is 0, and where `adapt` is False

    Paper: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes" (ICLR 2020).

    Deviations: phi, which may bound ||w||, is the identity. The norms are those of the whole tensor where it is
    sharded. An entry whose gradient is NaN or infinite is left out of the step, and of the norms.

    `schedules.lamb_lr` and `lamb_warmup` give the paper's rate and warmup for a batch size. It neither decays nor
    adapts norms and biases: give them a group with `weight_decay=0.0` and `adapt=False`. `pytorch_optimizer.Lamb` (4.1)
    has the decay outside of the ratio or no bias correction; `timm.optim.Lamb` conforms with `always_adapt=True` and
    `max_grad_norm=None`, but cannot be imported without torchvision.

    Args:
        params: Parameters, or groups of them; a group can have every argument for itself.
        lr: Length of a step, as a share of the tensor's norm.
        betas: Decay rates of the moments.
        eps: Added to the square root. Default: the paper's.
        weight_decay: Part of u, so its effect on the norm is bounded by lr. Default: the paper's.
        adapt: False for Adam's own step length.
        moment_dtype: `"float32"` keeps the moments of bfloat16 and float16 parameters in float32; `"parameter"` in the
            parameters' precision, in which v can stand still.
        maximize: Ascend instead.

    Raises:
        ValueError: If an argument is out of its bounds or a gradient is sparse.

    Example:
        >>> parameter = torch.nn.Parameter(torch.tensor([3.0, 4.0]))
        >>> optimizer = LAMB([parameter], lr=0.1, weight_decay=0.0)
        >>> parameter.grad = torch.tensor([1e-4, 0.0])
        >>> optimizer.step()
        >>> [round(entry, 2) for entry in parameter.tolist()]  # 0.1 times the norm, which was 5
        [2.5, 4.0]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.01,
        adapt: bool = True,
        moment_dtype: MomentDtype = "float32",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "adapt": adapt,
            "moment_dtype": moment_dtype,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _step_group(self, group: dict[str, Any], members: list[Member]) -> None:
        squares = [self._move_moments(member, group) for member in members]
        if not members:
            return
        sources = [member.source for member in members]
        ratios = [torch.ones((), dtype=torch.float64)] * len(members)
        if group["adapt"]:
            weights, updates = (
                reduce_over_shards(stacked(column, sources), sources, dist.ReduceOp.SUM).sqrt()
                for column in zip(*squares, strict=True)
            )
            ratios = torch.where((weights > 0) & (updates > 0), weights / updates, 1.0).unbind()
        for member, ratio in zip(members, ratios, strict=True):
            self._move_parameter(member, ratio, group)

    def _move_moments(self, member: Member, group: dict[str, Any]) -> tuple[Tensor, Tensor]:
        """Update the moments, and return ||w||^2 and ||u||^2 of the part that is here."""
        weights = updates = torch.zeros((), dtype=torch.float64, device=member.gradient.device)
        for chunks, gradient in flat_chunks(self._tensors(member), member.gradient):
            scaled = gradient if member.factor == 1.0 else gradient * member.factor
            self._update_finite(chunks, scaled, member, group)
            update = _direction(chunks, scaled, member, group)
            weights = weights + torch.dot(chunks[0], chunks[0]).double()
            updates = updates + torch.dot(update, update).double()
        return weights, updates

    def _move_parameter(self, member: Member, ratio: Tensor, group: dict[str, Any]) -> None:
        for chunks, gradient in flat_chunks(self._tensors(member), member.gradient):
            scaled = gradient if member.factor == 1.0 else gradient * member.factor
            step = (ratio * float(group["lr"])).to(scaled)
            chunks[0].sub_(_direction(chunks, scaled, member, group).mul_(step))

    def _tensors(self, member: Member) -> list[Tensor]:
        return [member.parameter, *(local(member.state[name]) for name in self._moments)]

    def _update(
        self, parameter: Tensor, gradient: Tensor, moments: Sequence[Tensor], member: Member, group: dict[str, Any]
    ) -> None:
        exp_avg, exp_avg_sq = moments
        beta1, beta2 = group["betas"]
        exp_avg.lerp_(gradient, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)


def _direction(chunks: Sequence[Tensor], gradient: Tensor, member: Member, group: dict[str, Any]) -> Tensor:
    """Return u of one chunk, 0 where the gradient is not finite: found twice rather than kept, which saves memory."""
    parameter, exp_avg, exp_avg_sq = chunks
    beta1, beta2 = group["betas"]
    root = math.sqrt(1 - beta2**member.step)
    update = exp_avg / exp_avg_sq.sqrt().add_(group["eps"] * root)
    update.mul_(root / (1 - beta1**member.step)).add_(parameter, alpha=group["weight_decay"])
    return update if surely_finite(gradient) else torch.where(gradient.square().isfinite(), update, 0.0)
