# SPDX-License-Identifier: Apache-2.0
"""Parameters of a transformer's shapes, and gradients for them that change from step to step and take no time to draw.

A few sets of normal numbers are drawn once and go round; what is given is one of them, scaled. No entry is larger than
sqrt(1000) times its own v, once every set was seen: SPAM clips none, unless there is a spike.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import nn

Kind = Literal["calm", "spiked", "ordinary"]

SETS = 3
"""After as many steps the gradients come round, at another scale."""

WARM_UP = 2 * SETS
"""Steps before calm gradients have the size they keep: half of what they had until then."""

_SIZE = 1e-3  # of an entry; small, as gradients are


def transformer_shapes(size: float) -> list[tuple[int, ...]]:
    """Return the shapes of a GPT's parameters, about `size` in all: width a power of two, six to thirty blocks.

    Args:
        size: Number of entries, at least 10 000.

    Example:
        >>> shapes = transformer_shapes(10e6)
        >>> shapes[0], len(shapes), sum(map(math.prod, shapes))
        ((8192, 256), 163, 9995264)
    """
    width = 2 ** int(math.log2(math.sqrt(size / 100)))
    blocks = max(1, round((size / width**2 - 32) / 12))
    vector, matrix = (width,), (width, width)
    attention = [vector, vector, matrix, vector, matrix, vector, matrix, vector, matrix, vector]  # norm, q, k, v, o
    mlp = [vector, vector, (4 * width, width), (4 * width,), (width, 4 * width), vector]
    return [(32 * width, width), *(attention + mlp) * blocks, vector, vector]


class GradientSupply:
    """Parameters, and their `.grad`, which `give` fills anew before every step.

    All optimizers that are compared move these same parameters, as each would need its own otherwise: how long a step
    takes does not depend on where they are.

    - calm: no entry of a tensor is as large as the running mean of its largest entry, and none is a spike to SPAM.
    - spiked: calm, but for one entry in every tensor, another one each time, that is a million times larger and more.
    - ordinary: normal numbers, the largest of which is above that mean in about half of the tensors.

    Args:
        shapes: Of the parameters.
        device: Where everything is.
        seed: Of what is drawn, apart from torch's global numbers.

    Example:
        >>> supply = GradientSupply([(2, 3), (4,)], torch.device("cpu"))
        >>> supply.give("spiked", WARM_UP)
        >>> [(parameter.grad > 1.0).sum().item() for parameter in supply.parameters]
        [1, 1]
    """

    def __init__(self, shapes: Sequence[tuple[int, ...]], device: torch.device, seed: int = 0) -> None:
        self.device = device
        draw = torch.Generator(device).manual_seed(seed)
        self.parameters = [
            nn.Parameter(torch.randn(shape, generator=draw, device=device).mul_(0.02)) for shape in shapes
        ]
        self.gradients = [torch.zeros_like(parameter) for parameter in self.parameters]
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        self._sets = [[torch.randn(shape, generator=draw, device=device) for shape in shapes] for _ in range(SETS)]
        self._largest = [[float(each.abs().amax()) for each in one] for one in self._sets]

    @property
    def size(self) -> int:
        """Entries of all parameters."""
        return sum(parameter.numel() for parameter in self.parameters)

    @torch.no_grad()
    def give(self, kind: Kind, step: int) -> None:
        """Fill every `.grad`.

        Args:
            kind: Of the gradients.
            step: From 0; those below `WARM_UP` have no spikes.
        """
        for index, gradient in enumerate(self.gradients):
            scale = _SIZE if kind == "ordinary" else self._calm_scale(index, step)
            torch.mul(self._sets[step % SETS][index], scale, out=gradient)
            if kind == "spiked" and step >= WARM_UP:
                gradient.view(-1)[step % gradient.numel()] = 1e6 * _SIZE * step  # above the mean of those before

    def _calm_scale(self, index: int, step: int) -> float:
        """What makes the largest entries of a parameter's sets equal, on average as large as they are."""
        own = self._largest[step % SETS][index]
        mean = sum(largest[index] for largest in self._largest) / SETS
        return (2 if step < WARM_UP else 1) * _SIZE * mean / own
