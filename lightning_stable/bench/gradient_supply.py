# SPDX-License-Identifier: Apache-2.0
"""Parameters of a transformer's shapes, and gradients for them that change from step to step and take no time to draw.

A few sets of normal numbers are drawn once and go round; what is given is one of them, scaled. No entry is larger than
sqrt(1000) times its own v, once every set was seen: SPAM clips none, unless there is a spike.
"""

import math
from collections.abc import Sequence
from typing import Literal

import torch
from torch import Tensor, nn

Kind = Literal["calm", "spiked", "ordinary"]

SETS = 3
"""After as many steps the gradients come round."""

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
        self.size = sum(map(math.prod, shapes))
        draw = torch.Generator(device).manual_seed(seed)
        self.parameters = [
            nn.Parameter(torch.randn(shape, generator=draw, device=device).mul_(0.02)) for shape in shapes
        ]
        self._given = torch.zeros(self.size, device=device)  # all in one, so that it is filled at once
        self.gradients = self._views(self._given)
        for parameter, gradient in zip(self.parameters, self.gradients, strict=True):
            parameter.grad = gradient
        self._sets = [torch.randn(self.size, generator=draw, device=device).mul_(_SIZE) for _ in range(SETS)]
        self._ordinary_scales = self._make_calm()

    @torch.no_grad()
    def give(self, kind: Kind, step: int) -> None:
        """Fill every `.grad`.

        Args:
            kind: Of the gradients.
            step: From 0; those below `WARM_UP` have no spikes.
        """
        which = step % SETS
        torch.mul(self._sets[which], 2.0 if step < WARM_UP and kind != "ordinary" else 1.0, out=self._given)
        for index, gradient in enumerate(self.gradients):
            if kind == "ordinary":
                gradient.mul_(self._ordinary_scales[which][index])
            elif kind == "spiked" and step >= WARM_UP:
                gradient.view(-1)[step % gradient.numel()] = 1e6 * _SIZE * step  # above the mean of those before

    def _views(self, flat: Tensor) -> list[Tensor]:
        """One for each parameter, in its shape."""
        parts = flat.split([parameter.numel() for parameter in self.parameters])
        return [part.view(each.shape) for part, each in zip(parts, self.parameters, strict=True)]

    def _make_calm(self) -> list[list[float]]:
        """Make the largest entries of a parameter's sets equal, and return what would undo it, by set and parameter."""
        sets = [self._views(flat) for flat in self._sets]
        largest = [[float(each.abs().amax()) for each in views] for views in sets]
        means = [sum(of_one) / SETS for of_one in zip(*largest, strict=True)]
        scales = [[own / mean for own, mean in zip(of_set, means, strict=True)] for of_set in largest]
        for views, of_set in zip(sets, scales, strict=True):
            for view, scale in zip(views, of_set, strict=True):
                view.div_(scale)
        return scales
