# SPDX-License-Identifier: Apache-2.0
"""Adam-atan2: Adam whose division is an arc tangent, which needs no eps."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_stable.optim.arguments import require_rates
from lightning_stable.optim.moment_optimizer import Member, MomentDtype, MomentOptimizer


class AdamAtan2(MomentOptimizer):
    """Adam that takes atan2 of its two moments instead of their quotient: no eps, and no step above lr a pi / 2.

        w <- w - lr weight_decay w
        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2
        mhat = m / (1 - beta1^t),        vhat = v / (1 - beta2^t)
        w <- w - lr a atan2(mhat, b sqrt(vhat))

    The update is the same for gradients of every size, so one that shrinks as the model gets wider or deeper does not
    fade below eps. With a = 1.27, about 4 / pi, an entry whose gradient is always the same moves by lr, as in Adam.

    Paper: Everett et al., "Scaling Exponents Across Parameterizations and Optimizers" (ICML 2024).

    Deviations: none in the equations. Only where g^2 leaves the range of the moments (|g| below 1e-22 or above 1e19 in
    float32) does size matter: v is then 0, with steps of up to lr a pi / 2, or the entry stops. Weight decay comes
    before the update and is multiplied by lr, as in torch. An entry whose gradient is NaN or infinite is left out of
    the step.

    Args:
        params: Parameters, or groups of them; a group can have every argument for itself.
        lr: Learning rate.
        betas: Decay rates of the moments. Default: those of the implementation that people use, adam-atan2-pytorch.
        a: Factor on the update.
        b: Factor on sqrt(vhat); the smaller it is, the more the update is one of signs.
        weight_decay: Decoupled weight decay.
        moment_dtype: `"float32"` keeps the moments of bfloat16 and float16 parameters in float32; `"parameter"` in the
            parameters' precision, in which v can stand still.
        maximize: Ascend instead.

    Raises:
        ValueError: If an argument is out of its bounds or a gradient is sparse.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> optimizer = AdamAtan2([parameter], lr=0.1)
        >>> parameter.grad = torch.tensor([1e-15, -1.0])
        >>> optimizer.step()
        >>> [round(entry, 3) for entry in parameter.tolist()]
        [-0.1, 0.1]
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.99),
        a: float = 1.27,
        b: float = 1.0,
        weight_decay: float = 0.0,
        moment_dtype: MomentDtype = "float32",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "a": a,
            "b": b,
            "weight_decay": weight_decay,
            "moment_dtype": moment_dtype,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_rates("AdamAtan2", {}, a=group["a"], b=group["b"])

    def _update(
        self, parameter: Tensor, gradient: Tensor, moments: Sequence[Tensor], member: Member, group: dict[str, Any]
    ) -> None:
        exp_avg, exp_avg_sq = moments
        beta1, beta2 = group["betas"]
        lr = float(group["lr"])
        exp_avg.lerp_(gradient, 1 - beta1)
        exp_avg_sq.mul_(beta2).addcmul_(gradient, gradient, value=1 - beta2)
        # atan2(m / c1, b sqrt(v / c2)) = atan2(m, b c1 / sqrt(c2) sqrt(v)): an angle knows no common factor
        correction = (1 - beta1**member.step) / math.sqrt(1 - beta2**member.step)
        angle = exp_avg_sq.sqrt().mul_(group["b"] * correction)
        torch.atan2(exp_avg, angle, out=angle)
        parameter.mul_(1 - lr * group["weight_decay"]).add_(angle, alpha=-lr * group["a"])
