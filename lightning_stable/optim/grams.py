# SPDX-License-Identifier: Apache-2.0
"""Grams: the size of Adam's step, in the direction of the gradient at hand."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_stable.optim.fused_adamw import adamw_
from lightning_stable.optim.moment_optimizer import Member, MomentDtype, MomentOptimizer


class Grams(MomentOptimizer):
    """Adam whose momentum says how far to go, and the gradient at hand in which direction.

        w <- w - lr weight_decay w
        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2
        mhat = m / (1 - beta1^t),        vhat = v / (1 - beta2^t)
        w <- w - lr sign(g) |mhat| / (sqrt(vhat) + eps)

    To first order, no step goes uphill. An entry whose gradient is 0 stays where it is, but for weight decay.

    Paper: Cao et al., "Grams: Gradient Descent with Adaptive Momentum Scaling" (2024).

    Deviations from the authors' code: eps is added after the bias correction of v, as in the paper and in torch.
    Gradients are left as they were. An entry whose gradient is NaN or infinite is left out of the step.

    Args:
        params: Parameters, or groups of them; a group can have every argument for itself.
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Added to sqrt(vhat). Default: that of the authors' code.
        weight_decay: Decoupled weight decay.
        moment_dtype: `"float32"` keeps the moments of bfloat16 and float16 parameters in float32; `"parameter"` in the
            parameters' precision, in which v can stand still.
        maximize: Ascend instead.

    Raises:
        ValueError: If an argument is out of its bounds or a gradient is sparse.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = Grams([parameter], lr=0.1)
        >>> for gradient in (1.0, -0.1):  # momentum still points down, the gradient up already
        ...     parameter.grad = torch.tensor([gradient])
        ...     optimizer.step()
        ...     print(round(parameter.item(), 3))
        -0.1
        -0.041
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        moment_dtype: MomentDtype = "float32",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "moment_dtype": moment_dtype,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _update(
        self, parameter: Tensor, gradient: Tensor, moments: Sequence[Tensor], member: Member, group: dict[str, Any]
    ) -> None:
        exp_avg, exp_avg_sq = moments
        beta1, beta2 = group["betas"]
        lr = float(group["lr"])
        root = math.sqrt(1 - beta2**member.step)
        step_size = lr * root / (1 - beta1**member.step)
        adam = torch.zeros_like(parameter)  # a parameter at 0 becomes Adam's step
        adamw_([adam], [gradient], [exp_avg], [exp_avg_sq], step_size, group["betas"], group["eps"] * root)
        parameter.mul_(1 - lr * group["weight_decay"]).addcmul_(adam.abs_(), gradient.sign(), value=-1)
