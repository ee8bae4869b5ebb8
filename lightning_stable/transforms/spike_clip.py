# SPDX-License-Identifier: Apache-2.0
"""Clip single entries of a gradient against their own second moment."""

from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor
from torch.optim import Optimizer

from lightning_stable.functional.spike_clip import spike_clip
from lightning_stable.functional.tensor_norms import local, reduce_over_shards, stacked
from lightning_stable.transforms.shards import wide
from lightning_stable.transforms.transform import Member, Transform


class SpikeClip(Transform):
    """Clips every entry at the square root of `threshold` times its second moment, as SPAM does.

        step t = 1, 2, ...
        t >= start_after, t mod reset_interval >= start_after:   g <- sign(g) sqrt(threshold v), g^2 > threshold v > 0
        v: the optimizer's second moment, `exp_avg_sq`; where it has none, v <- beta2 v + (1 - beta2) g^2, g clipped

    Paper: Huang et al., "SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training" (ICLR 2025).

    Deviations: see `functional.spike_clip`: entries with v = 0 pass, instead of being frozen at 0. Infinity is clipped
    where v > 0; NaN stays, and does not enter v.

    With AdamW and `MomentumReset(moments="all", every_n_steps=n)` this is SPAM, with any other optimizer its like:
    give `reset_interval=n` then, as the second moment needs `start_after` steps to settle after each reset, too. `SPAM`
    is the same thing in one, and faster. v is that of the optimizer named by `bind`, which `GradientTransforms` calls.

    `clip_rate` is the share of entries.

    Args:
        threshold: Largest g^2 / v that is not clipped. Default: SPAM's 5000, 70 times the usual size.
        start_after: Steps until anything is clipped.
        reset_interval: `every_n_steps` of the `MomentumReset` beside it that resets all moments; `None` without one.
        beta2: Decay rate of v, where the optimizer has none.

    Raises:
        ValueError: If an argument is out of its bounds, or a gradient is sparse.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> clip = SpikeClip(threshold=4.0, start_after=2)
        >>> for gradient in ([1.0, 1.0], [1.0, 100.0]):
        ...     parameter.grad = torch.tensor(gradient)
        ...     clip.transform([parameter])
        >>> [round(entry, 3) for entry in parameter.grad.tolist()]  # v is 0.001 so far
        [0.063, 0.063]
    """

    def __init__(
        self,
        threshold: float = 5000.0,
        start_after: int = 20,
        reset_interval: int | None = None,
        beta2: float = 0.999,
    ) -> None:
        if not threshold > 0:
            raise ValueError(f"`SpikeClip(threshold=...)` must be above 0, got {threshold}.")
        if start_after < 0:
            raise ValueError(f"`SpikeClip(start_after=...)` must be at least 0, got {start_after}.")
        if reset_interval is not None and reset_interval < 1:
            raise ValueError(f"`SpikeClip(reset_interval=...)` must be at least 1 or None, got {reset_interval}.")
        if not 0 <= beta2 < 1:
            raise ValueError(f"`SpikeClip(beta2=...)` must be at least 0 and less than 1, got {beta2}.")
        self.threshold = threshold
        self.start_after = start_after
        self.reset_interval = reset_interval
        self.beta2 = beta2
        self._steps_taken = 0
        self._own: dict[int, Tensor] = {}  # second moments by position
        self._optimizer: Optimizer | None = None

    def bind(self, optimizer: Optimizer) -> None:
        """Use this optimizer's second moments, as far as it has them."""
        self._optimizer = optimizer

    def state_dict(self) -> dict[str, Any]:
        """Steps so far, and second moments where the optimizer has none."""
        return {
            "steps_taken": self._steps_taken,
            "exp_avg_sq": {position: _whole(value) for position, value in self._own.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a state."""
        self._steps_taken = state_dict["steps_taken"]
        self._own = {int(position): value.clone() for position, value in state_dict["exp_avg_sq"].items()}

    def __getstate__(self) -> dict[str, Any]:
        """Copies and pickles do not take the optimizer along."""
        return {**vars(self), "_optimizer": None}

    def _transform(self, members: list[Member]) -> None:
        self._steps_taken += 1
        if self.reset_interval is not None and self._steps_taken % self.reset_interval == 0:
            self._own.clear()
        gradients = [member.gradient for member in members]
        counts = stacked([self._clip_and_remember(member) for member in members], gradients)
        counts = reduce_over_shards(counts, gradients, dist.ReduceOp.SUM)
        self.clip_rate = counts.sum() / max(1, sum(gradient.numel() for gradient in gradients))

    def _clip_and_remember(self, member: Member) -> Tensor:
        """Return how many of this process's entries were clipped."""
        gradient, borrowed = local(member.gradient), self._borrowed(member.parameter)
        exp_avg_sq = self._own_moment(member) if borrowed is None else borrowed
        count = self._clip(gradient, exp_avg_sq) if self._is_clipping() else torch.zeros(())
        if borrowed is None:
            _remember(exp_avg_sq, gradient, self.beta2)
        else:
            self._own.pop(member.position, None)  # of the first step, before the optimizer had any
        return count

    def _clip(self, gradient: Tensor, exp_avg_sq: Tensor) -> Tensor:
        """Clip in place, and return how many entries that were."""
        exact = gradient.to(exp_avg_sq.dtype)
        clipped = spike_clip(exact, exp_avg_sq, self.threshold)
        if clipped is exact:
            return torch.zeros(())
        count = ((clipped != exact) & ~exact.isnan()).sum()
        gradient.copy_(clipped)
        return count

    def _is_clipping(self) -> bool:
        step, interval = self._steps_taken, self.reset_interval
        return (step if interval is None else min(step, step % interval)) >= self.start_after

    def _borrowed(self, parameter: Tensor) -> Tensor | None:
        """The optimizer's second moment of a parameter, if it has one, entry by entry."""
        if self._optimizer is None:
            return None
        exp_avg_sq = self._optimizer.state.get(parameter, {}).get("exp_avg_sq")
        fits = isinstance(exp_avg_sq, Tensor) and exp_avg_sq.shape == parameter.shape
        return local(exp_avg_sq) if fits else None

    def _own_moment(self, member: Member) -> Tensor:
        """The part of it that this process holds; a loaded state is whole, and lies on the host."""
        gradient, own = member.gradient, self._own.get(member.position)
        if own is None:
            own = torch.zeros_like(gradient, dtype=wide(gradient))
        elif isinstance(gradient, DTensor) and not isinstance(own, DTensor):
            own = distribute_tensor(own.to(gradient.device), gradient.device_mesh, gradient.placements)
        self._own[member.position] = own.to(gradient.device)
        return local(self._own[member.position])


def _whole(tensor: Tensor) -> Tensor:
    """A copy of all shards together: asked for on all ranks alike."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor.clone()


def _remember(exp_avg_sq: Tensor, gradient: Tensor, beta2: float) -> None:
    exact = gradient.to(exp_avg_sq.dtype)
    new = exp_avg_sq.mul(beta2).addcmul_(exact, exact, value=1 - beta2)
    exp_avg_sq.copy_(torch.where(new.isfinite(), new, exp_avg_sq))
