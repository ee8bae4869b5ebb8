# SPDX-License-Identifier: Apache-2.0
"""SPAM: AdamW that clips single spikes and forgets its momentum now and then."""

import dataclasses
import math
from collections.abc import Sequence
from typing import Any

from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_stable.functional.rewarmup import rewarmup
from lightning_stable.functional.sparse_mask import sparse_mask
from lightning_stable.functional.spike_clip import spike_clip
from lightning_stable.functional.tensor_norms import local
from lightning_stable.optim.arguments import require_rates, require_steps
from lightning_stable.optim.chunks import CHUNK
from lightning_stable.optim.fused_adamw import adamw_
from lightning_stable.optim.moment_optimizer import Member, MomentDtype, MomentOptimizer


class SPAM(MomentOptimizer):
    """AdamW whose gradient entries are clipped at sqrt(threshold v), and whose moments are reset every n steps.

        step t = 1, 2, ...;   D = reset_interval;   k = t mod D
        t divisible by D:                m = v = 0, and the counter s of the bias correction starts over
        t >= clip_after, k >= clip_after:   g <- sign(g) sqrt(spike_threshold v)   where g^2 > spike_threshold v > 0
        w <- w - lr weight_decay w
        m <- beta1 m + (1 - beta1) g,    v <- beta2 v + (1 - beta2) g^2,    s <- s + 1
        w <- w - lr a sqrt(1 - beta2^s) / (1 - beta1^s) m / (sqrt(v) + eps)
        a = 1 before the first reset, then 1 - 0.99 (1 + cos(pi k / (reset_warmup + 1))) / 2 while k < reset_warmup

    Paper: Huang et al., "SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training" (ICLR 2025).

    Deviations from the official code: entries with v = 0 are not clipped (to 0, that is), which froze for good what
    had no gradient in its first steps. Bias correction starts over with the moments, without which the update after a
    reset is up to 3.2 lr (`restart_bias_correction=False` for that). Weight decay comes before the update, as in torch,
    also with `density < 1`. Moments are float32 under parameters of less. Gradients are left as they were. Parameters
    without a gradient at a reset are reset too. An entry whose gradient is NaN, or infinite with no v > 0 to clip it
    by, is left out of the step.

    With `density < 1` momentum is sparse: of every parameter with two axes or more, a random share of the entries is
    trained, decay included, until the next reset chooses others. Only their moments exist: 8 density bytes a
    parameter. The choice depends on `seed`, the parameter's number and that of the reset: alike on all ranks and after
    a resume. It is not stored but found anew in each step, which takes about as long as the update itself.

    Args:
        params: Parameters, or groups of them; a group can have every argument for itself.
        lr: Learning rate.
        betas: Decay rates of the moments.
        eps: Added to sqrt(v) before its bias correction, as in the official code.
        weight_decay: Decoupled weight decay.
        spike_threshold: Largest g^2 / v that is not clipped; 0 for no clipping.
        clip_after: Steps from the start, and from each reset, before entries are clipped: v must settle first.
        reset_interval: Steps from one reset to the next; `None` for no resets.
        reset_warmup: Steps until the learning rate is back after a reset; 0 for none.
        restart_bias_correction: Whether the bias correction starts over at a reset.
        density: Share of the entries that have momentum, and are trained, between two resets.
        seed: Of the choice of these entries.
        moment_dtype: `"float32"` keeps the moments of bfloat16 and float16 parameters in float32; `"parameter"` in the
            parameters' precision, in which v can stand still.
        maximize: Ascend instead.

    Raises:
        ValueError: If an argument is out of its bounds, a gradient is sparse, or `density < 1` meets a sharded
            parameter.

    Example:
        >>> import torch
        >>> model = torch.nn.Linear(4, 2)
        >>> optimizer = SPAM(model.parameters(), lr=1e-3, weight_decay=0.1)
        >>> model(torch.ones(1, 4)).sum().backward()
        >>> optimizer.step()
    """

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-3,
        betas: tuple[float, float] = (0.9, 0.999),
        eps: float = 1e-6,
        weight_decay: float = 0.0,
        spike_threshold: float = 5000.0,
        clip_after: int = 20,
        reset_interval: int | None = 500,
        reset_warmup: int = 150,
        restart_bias_correction: bool = True,
        density: float = 1.0,
        seed: int = 0,
        moment_dtype: MomentDtype = "float32",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "eps": eps,
            "weight_decay": weight_decay,
            "spike_threshold": spike_threshold,
            "clip_after": clip_after,
            "reset_interval": reset_interval,
            "reset_warmup": reset_warmup,
            "restart_bias_correction": restart_bias_correction,
            "density": density,
            "seed": seed,
            "moment_dtype": moment_dtype,
            "maximize": maximize,
        }
        super().__init__(params, defaults)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_rates("SPAM", {}, spike_threshold=group["spike_threshold"])
        require_steps("SPAM", 0, clip_after=group["clip_after"], reset_warmup=group["reset_warmup"])
        require_steps("SPAM", 1, reset_interval=group["reset_interval"])
        require_rates("SPAM", {}, density=group["density"])
        if not 0.0 < group["density"] <= 1.0:
            raise ValueError(f"`SPAM(density=...)` must be above 0 and at most 1, got {group['density']}.")

    def _before(self, group: dict[str, Any]) -> None:
        if _steps_since_reset(group) != 0:
            return
        for state in (self.state[parameter] for parameter in group["params"] if parameter in self.state):
            for name in self._moments:
                state[name].zero_()
            if group["restart_bias_correction"]:
                state["step"].zero_()

    def _update(
        self, parameter: Tensor, gradient: Tensor, moments: Sequence[Tensor], member: Member, group: dict[str, Any]
    ) -> None:
        exp_avg, exp_avg_sq = moments
        beta1, beta2 = group["betas"]
        lr = float(group["lr"])
        correction = math.sqrt(1 - beta2**member.step) / (1 - beta1**member.step)
        adamw_(
            [parameter],
            [gradient],
            [exp_avg],
            [exp_avg_sq],
            step_size=lr * _lr_scale(group) * correction,
            betas=group["betas"],
            eps=group["eps"],
            decay=lr * group["weight_decay"],
        )

    def _update_finite(self, chunks: list[Tensor], gradient: Tensor, member: Member, group: dict[str, Any]) -> None:
        if _is_clipping(group):
            clipped = spike_clip(gradient, chunks[2], group["spike_threshold"])
            if clipped is gradient:  # nothing is above its limit, so nothing is NaN or infinite
                self._update(chunks[0], gradient, chunks[1:], member, group)
                return
            gradient = clipped
        super()._update_finite(chunks, gradient, member, group)

    def _step_member(self, member: Member, group: dict[str, Any]) -> None:
        size, kept = member.parameter.numel(), _kept(member.parameter, group)
        if kept == size:
            super()._step_member(member, group)
            return
        flat, flat_gradient = member.parameter.contiguous().view(-1), member.gradient.contiguous().view(-1)
        key = (group["seed"], member.index, _resets(group))
        for start in range(0, kept, CHUNK):
            part = slice(start, min(start + CHUNK, kept))
            chosen = sparse_mask(size, kept, key, part.start, part.stop, flat.device)
            entries = flat[chosen]
            moments = [member.state[name][part] for name in self._moments]
            packed = dataclasses.replace(member, gradient=flat_gradient[chosen])
            self._step_flat([entries, *moments], packed, group)
            flat[chosen] = entries
        if not member.parameter.is_contiguous():
            member.parameter.copy_(flat.view(member.parameter.shape))

    def _new_state(self, parameter: Tensor, group: dict[str, Any]) -> dict[str, Any]:
        kept = _kept(parameter, group)
        if kept == parameter.numel():
            return super()._new_state(parameter, group)
        if local(parameter) is not parameter:
            raise ValueError(
                f"`SPAM(density=...)` must be 1 for sharded parameters, whose shards know nothing of each other's "
                f"entries, got {group['density']}."
            )
        return super()._new_state(parameter.detach().reshape(-1)[:kept], group)


def _steps_since_reset(group: dict[str, Any]) -> int | None:
    """0 for the step that a reset precedes, `None` before the first reset."""
    interval, step = group["reset_interval"], group["steps_taken"]
    return None if interval is None or step < interval else step % interval


def _resets(group: dict[str, Any]) -> int:
    return 0 if group["reset_interval"] is None else group["steps_taken"] // group["reset_interval"]


def _lr_scale(group: dict[str, Any]) -> float:
    since = _steps_since_reset(group)
    return 1.0 if since is None else rewarmup(since, group["reset_warmup"])


def _is_clipping(group: dict[str, Any]) -> bool:
    interval, step = group["reset_interval"], group["steps_taken"]
    settled = step if interval is None else min(step, step % interval)
    return group["spike_threshold"] > 0 and settled >= group["clip_after"]


def _kept(parameter: Tensor, group: dict[str, Any]) -> int:
    """Entries of a parameter that have momentum."""
    if group["density"] == 1.0 or parameter.ndim < 2 or parameter.numel() == 0:
        return parameter.numel()
    return max(1, int(group["density"] * parameter.numel()))
