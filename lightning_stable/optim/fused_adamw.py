# SPDX-License-Identifier: Apache-2.0
"""AdamW's arithmetic, fused where torch has it, with the bias corrections left to the caller."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_FUSED: Callable[..., Any] | None = getattr(torch, "_fused_adamw_", None)  # private: tested for, never relied upon
_DEVICES = ("cpu", "cuda", "mps", "xpu")
_endless: dict[torch.device, Tensor] = {}


def adamw_(
    parameters: list[Tensor],
    gradients: list[Tensor],
    exp_avgs: list[Tensor],
    exp_avg_sqs: list[Tensor],
    step_size: float,
    betas: tuple[float, float],
    eps: float,
    decay: float = 0.0,
    fused: bool = True,
) -> None:
    """Move parameters and their moments by one step of AdamW, in place.

        p <- (1 - decay) p
        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2
        p <- p - step_size m / (sqrt(v) + eps)

    Paper: Loshchilov and Hutter, "Decoupled Weight Decay Regularization" (ICLR 2019).

    Deviations: `step_size` and `eps` hold the bias corrections, so that the caller can say how they count: torch's own
    AdamW is step_size = lr sqrt(c2) / c1, eps sqrt(c2), decay = lr weight_decay, with c = 1 - beta^step. The fused
    kernel corrects by itself, and is told that infinitely many steps were taken, when there is nothing to correct.

    Args:
        parameters: Contiguous, floating-point, on one device; changed.
        gradients: Of the parameters' sizes, like the rest; only read.
        exp_avgs: First moments m; changed.
        exp_avg_sqs: Second moments v; changed.
        step_size: Learning rate, with the bias corrections.
        betas: Decay rates of the moments.
        eps: Added to the square root.
        decay: Share of the parameters that is taken away first.
        fused: False for plain operations also where there is a fused kernel.

    Example:
        >>> parameter, m, v = torch.ones(2), torch.zeros(2), torch.zeros(2)
        >>> adamw_([parameter], [torch.tensor([3.0, -5.0])], [m], [v], step_size=0.1, betas=(0.0, 0.0), eps=0.0)
        >>> parameter.tolist()
        [0.8999999761581421, 1.100000023841858]
    """
    device = parameters[0].device
    if not (fused and _FUSED is not None and step_size and device.type in _DEVICES):
        for tensors in zip(parameters, gradients, exp_avgs, exp_avg_sqs, strict=True):
            _plain_adamw_(*tensors, step_size, betas, eps, decay)
        return
    _FUSED(
        parameters,
        gradients,
        exp_avgs,
        exp_avg_sqs,
        [],
        [_endlessly_many_steps(device)] * len(parameters),
        lr=step_size,
        beta1=betas[0],
        beta2=betas[1],
        weight_decay=decay / step_size,  # the kernel takes lr * weight_decay
        eps=eps,
        amsgrad=False,
        maximize=False,
    )


def _endlessly_many_steps(device: torch.device) -> Tensor:
    if device not in _endless:
        _endless[device] = torch.full((), torch.inf, device=device)
    return _endless[device]


def _plain_adamw_(
    parameter: Tensor,
    gradient: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    step_size: float,
    betas: tuple[float, float],
    eps: float,
    decay: float,
) -> None:
    parameter.mul_(1 - decay)
    exp_avg.lerp_(gradient, 1 - betas[0])
    exp_avg_sq.mul_(betas[1]).addcmul_(gradient, gradient, value=1 - betas[1])
    parameter.addcdiv_(exp_avg, exp_avg_sq.sqrt().add_(eps), value=-step_size)
