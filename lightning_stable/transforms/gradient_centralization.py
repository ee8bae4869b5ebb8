# SPDX-License-Identifier: Apache-2.0
"""Gradients whose rows have mean 0."""

import math

import torch
from torch import Tensor

from lightning_stable.functional.tensor_norms import local
from lightning_stable.transforms.shards import all_finite, sum_over_rows, wide
from lightning_stable.transforms.transform import Member, Transform


class GradientCentralization(Transform):
    """Subtract from each row of a gradient, all that flows into one output, its mean.

        g_i <- g_i - mean_j g_ij     for tensors with two axes or more; j over all axes but the first

    Paper: Yong et al., "Gradient Centralization: A New Optimization Technique for Deep Neural Networks" (ECCV 2020).

    Deviations: a row of a single entry, as of a layer with one input, is left alone: less its mean it would be 0, and
    the layer would never learn. The mean is taken in float32 at least, and over all ranks where a row is sharded.

    Raises:
        ValueError: If a gradient is sparse.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2, 3))
        >>> parameter.grad = torch.tensor([[1.0, 2.0, 3.0], [0.0, 0.0, 9.0]])
        >>> GradientCentralization().transform([parameter])
        >>> parameter.grad.tolist()
        [[-1.0, 0.0, 1.0], [-3.0, -3.0, 6.0]]
    """

    def _transform(self, members: list[Member]) -> None:
        gradients = [member.gradient for member in members if _row_size(member.gradient) > 1]
        means = [_row_means(gradient) for gradient in gradients]
        healthy = all_finite(means, gradients)
        for gradient, mean, is_healthy in zip(gradients, means, healthy, strict=True):
            local(gradient).sub_(torch.where(is_healthy.to(mean.device), mean, 0.0))


def _row_size(tensor: Tensor) -> int:
    """How many entries a row has, sharded or not."""
    return math.prod(tensor.shape[1:])


def _row_means(tensor: Tensor) -> Tensor:
    """The mean of each row, with the axes of the tensor."""
    part = local(tensor)
    sums = part.sum(dim=tuple(range(1, part.ndim)), keepdim=True, dtype=wide(part))
    return sum_over_rows(sums, tensor) / _row_size(tensor)
