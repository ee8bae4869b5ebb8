# SPDX-License-Identifier: Apache-2.0
"""Sophia: momentum divided by an estimate of the Hessian's diagonal, and clipped entry by entry."""

import math
import warnings
from collections.abc import Iterable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.optim.optimizer import ParamsT

from lightning_stable.functional.tensor_norms import local
from lightning_stable.optim.arguments import require_steps
from lightning_stable.optim.chunks import flat_chunks
from lightning_stable.optim.moment_optimizer import Member, MomentDtype, MomentOptimizer

_PATIENCE = 20  # steps after which somebody must have forgotten the estimates


class SophiaG(MomentOptimizer):
    """Moves every entry by its momentum over its curvature, and by at most lr.

        w <- w - lr weight_decay w
        m <- beta1 m + (1 - beta1) g
        w <- w - lr sign(m) min(|m| / (rho h + eps), 1)
        every k-th step, before the above:   h <- beta2 h + (1 - beta2) B g_hat^2        (`update_hessian`)

    where g_hat is the gradient of the mean loss of B samples (tokens), whose labels were drawn from the model's own
    prediction: the Gauss-Newton-Bartlett estimate of the Hessian's diagonal. The callback `GaussNewtonBartlett` does
    that every k steps. Without it h stays 0, and each step is the sign of the momentum.

    Paper: Liu et al., "Sophia: A Scalable Stochastic Second-order Optimizer for Language Model Pre-training" (ICLR
    2024).

    Deviations from the official code: B is part of h, as in the paper, and not multiplied in at each step, so that
    batches of different sizes weigh as they should; with B always the same the steps are equal. Moments are float32
    under parameters of less. An entry whose gradient is NaN or infinite is left out of the step, and one where
    g_hat^2 is keeps its h. Like there, neither m nor h is corrected for its bias.

    Tuning, from the paper: `rho` such that `win_rate` lies within 0.1 and 0.5, larger for a larger share; lr a little
    below AdamW's; twice AdamW's weight decay. If training blows up, raise `rho` or lower the learning rate.

    Args:
        params: Parameters, or groups of them; a group can have every argument for itself.
        lr: Learning rate: what an entry moves at most in one step, weight decay aside.
        betas: Decay rates of m and h.
        rho: How large an entry of h counts, the paper's gamma; default of the official code.
        weight_decay: Decoupled weight decay.
        eps: Added to rho h.
        batch_size: B, where `update_hessian` is not told it: samples, or tokens, that a mean is taken over. Default:
            the official code's, 5 sequences of 1024 tokens.
        moment_dtype: `"float32"` keeps m and h of bfloat16 and float16 parameters in float32; `"parameter"` in the
            parameters' precision, in which small entries of h are 0.
        maximize: Ascend instead.

    Raises:
        ValueError: If an argument is out of its bounds, or a gradient is sparse.

    Example:
        >>> model = torch.nn.Linear(2, 1)
        >>> optimizer = SophiaG(model.parameters(), lr=1e-3)
        >>> model(torch.ones(1, 2)).sum().backward()
        >>> optimizer.update_hessian(batch_size=1)  # from a real label here, to keep it short
        >>> optimizer.step()
        >>> optimizer.win_rate()
        0.0
    """

    _moments = ("exp_avg", "hessian")

    def __init__(
        self,
        params: ParamsT,
        lr: float | Tensor = 1e-4,
        betas: tuple[float, float] = (0.965, 0.99),
        rho: float = 0.04,
        weight_decay: float = 0.1,
        eps: float = 1e-15,
        batch_size: int = 5120,
        moment_dtype: MomentDtype = "float32",
        maximize: bool = False,
    ) -> None:
        defaults = {
            "lr": lr,
            "betas": betas,
            "rho": rho,
            "weight_decay": weight_decay,
            "eps": eps,
            "batch_size": batch_size,
            "moment_dtype": moment_dtype,
            "maximize": maximize,
            "estimates": 0,  # of the Hessian so far
        }
        super().__init__(params, defaults)

    @torch.no_grad()
    def update_hessian(self, gradients: Iterable[Tensor | None] | None = None, batch_size: int | None = None) -> None:
        """Take an estimate of the Hessian's diagonal into h; the coming step is the first to use it.

        Args:
            gradients: Of the mean loss over sampled labels, without the scale of a GradScaler; one for each parameter
                of all groups in order, `None` where there is none, which leaves h as it is. Only read, like `.grad`,
                which is taken if they are not given.
            batch_size: How many samples that mean is over; the group's own `batch_size` if not given.

        Raises:
            ValueError: If there are too many gradients or too few, if one does not fit its parameter or is sparse, or
                if `batch_size` is less than 1.
        """
        require_steps("SophiaG.update_hessian", 1, batch_size=batch_size)
        pairs = [(parameter, group) for group in self.param_groups for parameter in group["params"]]
        given = [parameter.grad for parameter, _ in pairs] if gradients is None else list(gradients)
        if len(given) != len(pairs):
            raise ValueError(
                f"`SophiaG.update_hessian(gradients=...)` must have one entry for each of the {len(pairs)} parameters, "
                f"`None` where there is no gradient, got {len(given)}."
            )
        for index, ((parameter, _), gradient) in enumerate(zip(pairs, given, strict=True)):
            if gradient is not None:
                _check_gradient(index, parameter, gradient)
        for group in self.param_groups:
            group["estimates"] += 1
        for (parameter, group), gradient in zip(pairs, given, strict=True):
            if gradient is not None:
                size = group["batch_size"] if batch_size is None else batch_size
                self._average(parameter, gradient, (1 - group["betas"][1]) * size, group)

    @torch.no_grad()
    def win_rate(self) -> float:
        """Return the share of the entries that the last step did not clip: |m| < rho h + eps.

        Entries whose momentum is exactly 0 do not count: they did not move. NaN if there is none that did. Of sharded
        parameters the entries of this process count. Waits for the device.
        """
        unclipped, moving = torch.zeros((), dtype=torch.int64), torch.zeros((), dtype=torch.int64)
        for group in self.param_groups:
            for state in (self.state[parameter] for parameter in group["params"] if parameter in self.state):
                size, limit = local(state["exp_avg"]).abs(), local(state["hessian"]) * group["rho"] + group["eps"]
                unclipped = unclipped.to(size.device) + ((size < limit) & (size > 0)).sum()
                moving = moving.to(size.device) + (size > 0).sum()
        unclipped, moving = torch.stack([unclipped, moving]).tolist()
        return unclipped / moving if moving else math.nan

    def _average(self, parameter: Tensor, gradient: Tensor, weight: float, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(self._new_state(parameter, group))
        for (hessian,), chunk in flat_chunks([local(state["hessian"])], local(gradient)):
            new = (hessian * group["betas"][1]).addcmul_(chunk, chunk, value=weight)
            kept = new.to(state["hessian"].dtype).isfinite()  # infinity, once stored, would never go away
            torch.where(kept, new, hessian, out=hessian)

    def _check(self, group: dict[str, Any]) -> None:
        super()._check(group)
        require_steps("SophiaG", 1, batch_size=group["batch_size"])
        for name in ("rho", "eps"):
            if not group[name] > 0.0:
                raise ValueError(f"`SophiaG({name}=...)` must be above 0, got {group[name]}.")

    def _before(self, group: dict[str, Any]) -> None:
        if group["steps_taken"] == _PATIENCE and group["estimates"] == 0:
            warnings.warn(
                f"`SophiaG` has taken {_PATIENCE} steps without an estimate of the Hessian, and so is sign descent. "
                "Add the callback `GaussNewtonBartlett()`, or call `update_hessian` every 10 steps.",
                UserWarning,
                stacklevel=2,
            )

    def _update(
        self, parameter: Tensor, gradient: Tensor, moments: Sequence[Tensor], member: Member, group: dict[str, Any]
    ) -> None:
        exp_avg, hessian = moments
        lr = float(group["lr"])
        parameter.mul_(1 - lr * group["weight_decay"])
        exp_avg.lerp_(gradient, 1 - group["betas"][0])
        ratio = (hessian * group["rho"]).add_(group["eps"])
        torch.div(exp_avg, ratio, out=ratio).clamp_(-1.0, 1.0)  # sign(m) min(|m| / ..., 1): h is never negative
        parameter.add_(ratio, alpha=-lr)


def _check_gradient(index: int, parameter: Tensor, gradient: Tensor) -> None:
    if gradient.is_sparse:
        raise ValueError(
            f"`SophiaG.update_hessian(gradients=...)` must be dense; that of parameter {index}, of shape "
            f"{tuple(parameter.shape)}, is sparse. Use `nn.Embedding(sparse=False)`."
        )
    if gradient.shape != parameter.shape:
        raise ValueError(
            f"`SophiaG.update_hessian(gradients=...)` must have the parameters' shapes; that of parameter {index} is "
            f"{tuple(parameter.shape)}, got {tuple(gradient.shape)}."
        )
