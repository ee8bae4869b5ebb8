# SPDX-License-Identifier: Apache-2.0
"""Fira's limit to how fast a gradient's norm may grow."""

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_stable.functional.tensor_norms import tensor_norms
from lightning_stable.transforms.shards import scale_
from lightning_stable.transforms.transform import Member, TensorScalars, Transform


class NormGrowthLimiter(Transform):
    """Let the norm of a gradient be at most gamma times what it was in the step before.

        n_t = min(||g_t||, gamma n_{t-1}),    g <- g n_t / ||g_t||
        n_t = ||g_t|| where there is no n_{t-1} yet, and in the first `start_after` steps

    Clipping without a threshold to tune: norms fall freely, and rise by 1% a step at most.

    Paper: Chen et al., "Fira: Can We Achieve Full-rank Training of LLMs Under Low-rank Constraint?" (2024),
    which limits the part of an update that lies outside of a low-rank projection. Here it is the gradient.

    Deviations from the official code: a norm of 0 is not remembered, but the last one that was not; with its 1e-8 in
    place of 0, a gradient that was 0 once may grow from there by 1% a step, and is lost for 1850 steps. Norms that are
    not finite are not remembered and turn nothing into NaN.

    `clip_rate` is the share of the tensors that were limited in the last call; 0 or 1 with `per="global"`.

    Args:
        gamma: Largest growth per step; the paper's value. `inf` changes nothing.
        per: Whether each `"tensor"` has its limit, as in the paper, or the norm of all together, `"global"`, has one.
        start_after: Steps, counted for each tensor while its gradient is finite and not 0, that are remembered but not
            limited. A warmup of the learning rate is a good choice where gradients grow at the start of training.

    Raises:
        ValueError: If an argument is out of its bounds, a gradient is sparse, or a state was made with another `per`.

    Example:
        >>> parameter, transform = torch.nn.Parameter(torch.zeros(1)), NormGrowthLimiter(gamma=1.5)
        >>> for gradient in (2.0, 100.0, 100.0, 1.0):
        ...     parameter.grad = torch.tensor([gradient])
        ...     transform.transform([parameter])
        ...     print(parameter.grad.item())
        2.0
        3.0
        4.5
        1.0
    """

    def __init__(self, gamma: float = 1.01, per: Literal["tensor", "global"] = "tensor", start_after: int = 0) -> None:
        if not gamma >= 1:
            raise ValueError(f"`NormGrowthLimiter(gamma=...)` must be at least 1, got {gamma}.")
        if per not in ("tensor", "global"):
            raise ValueError(f'`NormGrowthLimiter(per=...)` must be "tensor" or "global", got {per!r}.')
        if not start_after >= 0:
            raise ValueError(f"`NormGrowthLimiter(start_after=...)` must be at least 0, got {start_after}.")
        self.gamma = gamma
        self.per = per
        self.start_after = start_after
        self._memory = TensorScalars("norm", "step")

    def _transform(self, members: list[Member]) -> None:
        gradients = [member.gradient for member in members]
        norms = tensor_norms(gradients)
        if self.per == "tensor":
            factors = self._limit(norms, [member.position for member in members])
        else:
            factors = self._limit(torch.linalg.vector_norm(norms)[None], [0]).expand(len(members))
        for gradient, factor in zip(gradients, factors, strict=True):
            scale_(gradient, factor)

    def _limit(self, norms: Tensor, positions: list[int]) -> Tensor:
        """What to multiply by, given the norms; and remember them."""
        before = self._memory.take(positions, norms.device)
        seen = norms.isfinite() & (norms > 0)
        limited = (before["step"] >= self.start_after) & (before["norm"] > 0)
        limit = torch.where(limited, self.gamma * before["norm"], torch.inf)
        clipped = seen & (norms > limit)
        let_through = torch.where(clipped, limit, norms)
        self._memory.put(
            positions, norm=torch.where(seen, let_through, before["norm"]), step=before["step"] + seen.double()
        )
        self.clip_rate = clipped.double().mean()
        return torch.where(clipped, limit / norms, 1.0)

    def state_dict(self) -> dict[str, Any]:
        """The last norms that were let through, how many there were, and what of."""
        return {"per": self.per, **self._memory.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        if state_dict["per"] != self.per:
            raise ValueError(
                f'`NormGrowthLimiter(per=...)` must be "{state_dict["per"]}", as in the state, got "{self.per}".'
            )
        self._memory.load_state_dict(state_dict)
