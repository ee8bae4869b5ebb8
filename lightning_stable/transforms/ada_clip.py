# SPDX-License-Identifier: Apache-2.0
"""Clip a gradient's entries at the running mean of the largest one."""

from typing import Any

import torch

from lightning_stable.functional.ada_clip import ada_clip, ada_clip_threshold
from lightning_stable.functional.tensor_norms import local, tensor_maxima
from lightning_stable.transforms.transform import Member, TensorScalars, Transform


class AdaClip(Transform):
    """Scales entries down that are above the running mean of their tensor's largest entry, as Stable-SPAM does.

        M <- theta M + (1 - theta) max|g|,    T = M / (1 - theta^u),    u gradients seen
        g_i <- g_i T / max|g|   where |g_i| > T

    Paper: Huang et al., "Stable-SPAM: How to Train in 4-Bit More Stably than 16-Bit Adam" (2025).

    Deviations from the official code: u is never reset, so clipping stays as strict after a momentum reset as it was.
    The maximum is that of the whole tensor where it is sharded.

    `clip_rate` is the share of tensors of which anything was clipped, in a healthy run about a half.

    Args:
        theta: Decay rate of the mean.

    Raises:
        ValueError: If `theta` is out of its bounds, or a gradient is sparse.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(3))
        >>> clip = AdaClip(theta=0.5)
        >>> for gradient in ([1.0, 1.0, 2.0], [1.0, 1.0, 200.0]):
        ...     parameter.grad = torch.tensor(gradient)
        ...     clip.transform([parameter])
        >>> parameter.grad.round().tolist()  # (2 + 2 * 200) / 3
        [1.0, 1.0, 134.0]
    """

    def __init__(self, theta: float = 0.999) -> None:
        if not 0 <= theta < 1:
            raise ValueError(f"`AdaClip(theta=...)` must be at least 0 and less than 1, got {theta}.")
        self.theta = theta
        self._memory = TensorScalars("mean", "step")

    def state_dict(self) -> dict[str, Any]:
        """The means, and the gradients that they have seen."""
        return self._memory.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self._memory.load_state_dict(state_dict)

    def _transform(self, members: list[Member]) -> None:
        positions = [member.position for member in members]
        largest = tensor_maxima([member.gradient for member in members])
        before = self._memory.take(positions, largest.device)
        finite, step = largest.isfinite(), before["step"] + 1
        mean, threshold = ada_clip_threshold(largest, before["mean"], step, self.theta)
        self._memory.put(
            positions,
            mean=torch.where(finite, mean, before["mean"]),
            step=torch.where(finite, step, before["step"]),
        )
        clipped = finite & (largest > threshold)
        self.clip_rate = clipped.double().mean()
        on_host = largest.device.type == "cpu"
        bounds = [values.tolist() if on_host else values.unbind() for values in (threshold, largest, clipped)]
        for member, most, size, above in zip(members, *bounds, strict=True):
            gradient = local(member.gradient)
            if not on_host:
                gradient.copy_(torch.where(above, ada_clip(gradient, most, size), gradient))
            elif above:
                gradient.copy_(ada_clip(gradient, most, size))
