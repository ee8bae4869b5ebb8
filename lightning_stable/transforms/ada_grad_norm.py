# SPDX-License-Identifier: Apache-2.0
"""Normalise every tensor's gradient by what its norm usually is."""

from typing import Any

import torch

from lightning_stable.functional.ada_grad_norm import NormHistory, ada_grad_norm
from lightning_stable.functional.tensor_norms import tensor_norms
from lightning_stable.transforms.shards import scale_
from lightning_stable.transforms.transform import Member, TensorScalars, Transform


class AdaGradNorm(Transform):
    """Gives every tensor's gradient a norm of about 1, and a spike no more than that, as Stable-SPAM does.

        a <- gamma1 a + (1 - gamma1) ||g||,    b <- gamma2 b + (1 - gamma2) ||g||^2
        g <- g / ||g|| * (a / (1 - gamma1^u)) / (sqrt(b / (1 - gamma2^u)) + eps),    u gradients seen

    Paper: Huang et al., "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam" (2025).

    Deviations from the official code: u is never reset. A gradient of norm 0 stays. The norm is that of the whole
    tensor where it is sharded. Nothing of the gradient's size is left: use it with an optimizer to which size does not
    matter (Adam and its kin), and nothing behind it that looks at norms. One element alone becomes about 1 in size.

    Args:
        gamma1: Decay rate of the mean norm.
        gamma2: Decay rate of the mean squared norm.
        eps: Added to the square root.

    Raises:
        ValueError: If an argument is out of its bounds, or a gradient is sparse.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> normalise = AdaGradNorm()
        >>> for gradient in ([3.0, 4.0], [3.0, 4.0], [3000.0, 4000.0]):
        ...     parameter.grad = torch.tensor(gradient)
        ...     normalise.transform([parameter])
        ...     print(round(parameter.grad.norm().item(), 2))
        1.0
        1.0
        0.75
    """

    def __init__(self, gamma1: float = 0.7, gamma2: float = 0.9, eps: float = 1e-8) -> None:
        for name, value in (("gamma1", gamma1), ("gamma2", gamma2)):
            if not 0 <= value < 1:
                raise ValueError(f"`AdaGradNorm({name}=...)` must be at least 0 and less than 1, got {value}.")
        if not eps >= 0:
            raise ValueError(f"`AdaGradNorm(eps=...)` must be at least 0, got {eps}.")
        self.gamma1 = gamma1
        self.gamma2 = gamma2
        self.eps = eps
        self._memory = TensorScalars("mean", "mean_sq", "step")

    def state_dict(self) -> dict[str, Any]:
        """The means, and the gradients that they have seen."""
        return self._memory.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self._memory.load_state_dict(state_dict)

    def _transform(self, members: list[Member]) -> None:
        positions = [member.position for member in members]
        norms = tensor_norms([member.gradient for member in members])
        before = self._memory.take(positions, norms.device)
        seen = before["step"]
        history = NormHistory(before["mean"], before["mean_sq"], self.gamma1**seen, self.gamma2**seen)
        history, factors = ada_grad_norm(norms, history, self.gamma1, self.gamma2, self.eps)
        finite = norms.isfinite()
        self._memory.put(
            positions,
            mean=torch.where(finite, history.mean, before["mean"]),
            mean_sq=torch.where(finite, history.mean_sq, before["mean_sq"]),
            step=seen + finite.double(),
        )
        for member, factor in zip(members, torch.where(finite, factors, 1.0), strict=True):
            scale_(member.gradient, factor)
