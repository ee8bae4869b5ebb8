# SPDX-License-Identifier: Apache-2.0
"""ZClip: clipping of gradient norms that stand out from the recent ones."""

import math

import torch
from torch import Tensor

from lightning_stable.functional.tensor_norms import tensor_norms
from lightning_stable.transforms.shards import scale_
from lightning_stable.transforms.transform import Member, Transform

_NORMAL_CONSISTENCY = 1.4826  # 1.4826 MAD is the standard deviation of normal data


class ZScoreClip(Transform):
    """Clip the global norm where it is more than z standard deviations above its running mean (ZClip).

        s = max(sigma, min_std mu)
        n = ||g||, that of all gradients together; it stands out where n > mu + z s
        limit = mu + z s / (score / z) = mu + (z s)^2 / (n - mu),   score = (n - mu) / s
        let through: n* = limit where n stands out, else n;  max_norm at most;  g <- g n* / n
        mu <- alpha mu + (1 - alpha) n*,    sigma^2 <- alpha sigma^2 + (1 - alpha) (n* - mu)^2, of the new mu
        after the first `warmup_steps` norms, which are let through: mu = median, sigma = 1.4826 MAD

    The reciprocal limit is the paper's: the further a norm stands out, the nearer to the mean it is brought.

    Paper: Kumar et al., "ZClip: Adaptive Spike Mitigation for LLM Pre-Training" (2025).

    Deviations from the official code: it starts from mean and variance, which one spike in the warm-up inflates so that
    nothing is clipped for long; sigma has a floor, without which a rise of 1e-5 after constant norms stands out;
    nothing is added to sigma or n; there is no fixed limit beside the adaptive one, unless asked for; the running mean
    is fed with what really was let through. Norms that are not finite, or 0, change nothing and are not remembered.
    Norms are float32 at least, and what is remembered, the warm-up included, is in the state.

    Norms that rise at once and stay high, as after a change of the data, are clipped to the old level for long: use
    `NormGrowthLimiter` where norms must be able to rise.

    `clip_rate` is 1 if the last gradient was clipped, else 0.

    Args:
        alpha: Decay rate of mean and variance; the paper's value.
        z: Standard deviations above the mean that are let through; the paper's value.
        warmup_steps: Norms to start from; the paper's value.
        max_norm: A fixed limit in addition, also in the warm-up; the official code has 1.0.
        min_std: Least standard deviation, as a share of the mean. Norms of healthy runs vary by more.

    Raises:
        ValueError: If an argument is out of its bounds, a gradient is sparse, or a state was made with other
            `warmup_steps`.

    Example:
        >>> parameter, transform = torch.nn.Parameter(torch.zeros(1)), ZScoreClip(z=2.0, warmup_steps=2)
        >>> for gradient in (0.5, 1.5, 1000.0):
        ...     parameter.grad = torch.tensor([gradient])
        ...     transform.transform([parameter])
        >>> round(parameter.grad.item(), 3), transform.clip_rate.item()
        (1.002, 1.0)
    """

    def __init__(
        self,
        alpha: float = 0.97,
        z: float = 2.5,
        warmup_steps: int = 25,
        max_norm: float | None = None,
        min_std: float = 0.01,
    ) -> None:
        if not 0 <= alpha < 1:
            raise ValueError(f"`ZScoreClip(alpha=...)` must be at least 0 and less than 1, got {alpha}.")
        if not z > 0:
            raise ValueError(f"`ZScoreClip(z=...)` must be larger than 0, got {z}.")
        if not warmup_steps >= 2:
            raise ValueError(f"`ZScoreClip(warmup_steps=...)` must be at least 2, got {warmup_steps}.")
        if max_norm is not None and not max_norm > 0:
            raise ValueError(f"`ZScoreClip(max_norm=...)` must be larger than 0 or None, got {max_norm}.")
        if not 0 <= min_std < math.inf:
            raise ValueError(f"`ZScoreClip(min_std=...)` must be at least 0 and finite, got {min_std}.")
        self.alpha = alpha
        self.z = z
        self.warmup_steps = warmup_steps
        self.max_norm = max_norm
        self.min_std = min_std
        zero = torch.zeros((), dtype=torch.float64)
        self._state = {
            "warmup": torch.zeros(warmup_steps, dtype=torch.float64),  # the first norms
            "step": zero,  # norms remembered so far
            "mean": zero,
            "variance": zero,
        }

    def _transform(self, members: list[Member]) -> None:
        gradients = [member.gradient for member in members]
        norm = torch.linalg.vector_norm(tensor_norms(gradients))
        self._state = {name: value.to(norm.device) for name, value in self._state.items()}
        seen = norm.isfinite() & (norm > 0)
        let_through = torch.where(seen, self._limited(norm), norm)
        clipped = seen & (let_through < norm)
        factor = torch.where(clipped, let_through / norm, 1.0)
        for gradient in gradients:
            scale_(gradient, factor)
        after = self._remembering(let_through)
        self._state = {name: torch.where(seen, after[name], value) for name, value in self._state.items()}
        self.clip_rate = clipped.double()

    def _limited(self, norm: Tensor) -> Tensor:
        """The norm that is let through."""
        mean, variance = self._state["mean"], self._state["variance"]
        reach = self.z * torch.maximum(variance.sqrt(), self.min_std * mean)
        stands_out = (self._state["step"] >= self.warmup_steps) & (norm > mean + reach)
        limited = torch.where(stands_out, mean + reach.square() / (norm - mean), norm)
        return limited if self.max_norm is None else limited.clamp(max=self.max_norm)

    def _remembering(self, norm: Tensor) -> dict[str, Tensor]:
        """The state with one norm more."""
        step, warmup = self._state["step"], self._state["warmup"]
        is_next = torch.arange(self.warmup_steps, device=norm.device) == step
        warmup = torch.where(is_next, norm, warmup)  # nothing, once it is full
        median = _median(warmup)
        deviation = _NORMAL_CONSISTENCY * _median((warmup - median).abs())
        mean = self.alpha * self._state["mean"] + (1 - self.alpha) * norm
        variance = self.alpha * self._state["variance"] + (1 - self.alpha) * (norm - mean).square()
        is_warm = step >= self.warmup_steps
        return {
            "warmup": warmup,
            "step": step + 1,
            "mean": torch.where(is_warm, mean, median),
            "variance": torch.where(is_warm, variance, deviation.square()),
        }

    def state_dict(self) -> dict[str, Tensor]:
        """The norms of the warm-up, how many norms there were, and their running mean and variance."""
        return {name: value.clone() for name, value in self._state.items()}

    def load_state_dict(self, state_dict: dict[str, Tensor]) -> None:
        """Go on from a state."""
        size = state_dict["warmup"].numel()
        if size != self.warmup_steps:
            raise ValueError(
                f"`ZScoreClip(warmup_steps=...)` must be {size}, as in the state, got {self.warmup_steps}."
            )
        self._state = {name: state_dict[name].clone() for name in self._state}


def _median(values: Tensor) -> Tensor:
    """The middle value, or the mean of the two; `torch.median` takes the lower one."""
    ordered = values.sort().values
    middle = len(values) // 2
    return ordered[middle] if len(values) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
