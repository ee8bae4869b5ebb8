# SPDX-License-Identifier: Apache-2.0
"""diffGrad: Adam with less of a step where the gradient has not changed."""

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_stable.optim.fused_adamw import adamw_
from lightning_stable.optim.moment_optimizer import Member, MomentDtype, MomentOptimizer


class DiffGrad(MomentOptimizer):
    """Adam whose step is multiplied by a friction between 1/2 and 1: the less a gradient changes, the smaller it is.

        w <- w - lr weight_decay w
        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2
        mhat = m / (1 - beta1^t),        vhat = v / (1 - beta2^t)
        xi = 1 / (1 + exp(-|g_before - g|)),    g_before = 0 at first, then the gradient of the step before
        w <- w - lr xi mhat / (sqrt(vhat) + eps)

    Paper: Dubey et al., "diffGrad: An Optimization Method for Convolutional Neural Networks" (IEEE Transactions on
    Neural Networks and Learning Systems, 2019).

    Deviations from the authors' code: weight decay is decoupled; there it is added to the gradient, and so to the
    friction. eps is added after the bias correction of v, as in the paper and in torch. The authors' first version
    keeps the gradient itself, not a copy, as the one of the step before, so that xi is always 1/2 there. Gradients far
    below 1 in size have a friction near 1/2 all along: then this is Adam at half the learning rate. Where a
    parameter's gradient was missing, the one before is the last there was. An entry whose gradient is NaN or infinite
    is left out of the step.

    Args:
        params: Parameters, or groups of them; a group can have every argument for itself.
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Added to sqrt(vhat).
        weight_decay: Decoupled weight decay.
        moment_dtype: `"float32"` keeps moments and previous gradient of bfloat16 and float16 parameters in float32;
            `"parameter"` in the parameters' precision, in which v can stand still.
        maximize: Ascend instead.

    Raises:
        ValueError: If an argument is out of its bounds or a gradient is sparse.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(1))
        >>> optimizer = DiffGrad([parameter], lr=0.1)
        >>> parameter.grad = torch.ones(1)
        >>> optimizer.step()
        >>> first = parameter.item()
        >>> optimizer.step()
        >>> round(first, 4), round(parameter.item() - first, 4)
        (-0.0731, -0.05)
    """

    _moments = ("exp_avg", "exp_avg_sq", "previous_grad")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-8,
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
        exp_avg, exp_avg_sq, previous = moments
        beta1, beta2 = group["betas"]
        lr = float(group["lr"])
        root = math.sqrt(1 - beta2**member.step)
        step_size = lr * root / (1 - beta1**member.step)
        friction = torch.sub(previous, gradient).abs_().sigmoid_()
        previous.copy_(gradient)
        adam = torch.zeros_like(parameter)  # a parameter at 0 becomes Adam's step
        adamw_([adam], [gradient], [exp_avg], [exp_avg_sq], step_size, group["betas"], group["eps"] * root)
        parameter.mul_(1 - lr * group["weight_decay"]).addcmul_(adam, friction)
