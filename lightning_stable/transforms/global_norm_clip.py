# SPDX-License-Identifier: Apache-2.0
"""Clipping by the norm of all gradients together."""

import torch

from lightning_stable.functional.tensor_norms import tensor_norms
from lightning_stable.transforms.shards import scale_
from lightning_stable.transforms.transform import Member, Transform


class GlobalNormClip(Transform):
    """Scale all gradients by one factor, so that their norm taken together is at most `max_norm`.

        ||g|| = sqrt(sum over all tensors of ||g_i||^2)
        g_i <- g_i min(1, max_norm / ||g||)

    Paper: Pascanu et al., "On the difficulty of training recurrent neural networks" (ICML 2013).

    Deviations from `torch.nn.utils.clip_grad_norm_`: norms are float32 at least, whatever the gradients are; nothing is
    added to the denominator, so a clipped gradient has `max_norm` exactly; where the norm is not finite, nothing is
    changed, while torch turns every gradient into NaN or 0. Gradients sharded by FSDP2 or tensor parallelism (DTensor)
    count with their norm over all ranks, under Lightning too, whose own clipping refuses them.

    `clip_rate` is 1 if the last gradient was clipped, else 0.

    Args:
        max_norm: Largest norm that is left alone; 1.0 is the usual choice for transformers.

    Raises:
        ValueError: If `max_norm` is not larger than 0, or a gradient is sparse.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> parameter.grad = torch.tensor([30.0, 40.0])
        >>> GlobalNormClip(max_norm=5.0).transform([parameter])
        >>> parameter.grad.tolist()
        [3.0, 4.0]
    """

    def __init__(self, max_norm: float = 1.0) -> None:
        if not max_norm > 0:
            raise ValueError(f"`GlobalNormClip(max_norm=...)` must be larger than 0, got {max_norm}.")
        self.max_norm = max_norm

    def _transform(self, members: list[Member]) -> None:
        gradients = [member.gradient for member in members]
        norm = torch.linalg.vector_norm(tensor_norms(gradients))
        clipped = norm.isfinite() & (norm > self.max_norm)
        factor = torch.where(clipped, self.max_norm / norm, 1.0)
        for gradient in gradients:
            scale_(gradient, factor)
        self.clip_rate = clipped.double()
