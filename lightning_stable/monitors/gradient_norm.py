# SPDX-License-Identifier: Apache-2.0
"""Log the norm of the gradients, as they are before clipping, and the learning rate."""

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable._lightning.trainer import gradient_scale
from lightning_stable.monitors.monitor import Monitor


class GradientNormMonitor(Monitor):
    """Logs the l2 norm over all gradients of an optimizer, and its learning rate.

        stability/grad_norm = sqrt(sum_i g_i^2) / scale,    stability/lr = lr of the first parameter group

    Deviations from logging the norm in a training loop: it is taken of the whole accumulated gradient, before
    clipping, without the scale of a gradient scaler (also for fused optimizers, which get their gradients scaled), and
    in float32 at least. NaN and infinity are logged as they are. Nothing is logged for an optimizer without gradients.
    The second optimizer has `stability/grad_norm/1` and `stability/lr/1`, and so on. See `Monitor` for the steps.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next.

    Raises:
        ValueError: If `every_n_steps` is less than 1.

    Example:
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(accelerator="cpu", callbacks=[GradientNormMonitor(every_n_steps=10)], **quiet)
    """

    def __init__(self, every_n_steps: int = 1) -> None:
        super().__init__(every_n_steps)
        self._measured: dict[str, Tensor] = {}

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Take norm and learning rate now: clipping and the scheduler come next."""
        if not self.measuring:
            return
        where = _where(trainer, optimizer)
        if f"stability/lr{where}" in self._measured:
            return  # LBFGS comes here several times a step
        self._measured[f"stability/lr{where}"] = torch.as_tensor(optimizer.param_groups[0]["lr"]).detach().clone()
        norm = _norm(optimizer)
        if norm is not None:
            self._measured[f"stability/grad_norm{where}"] = norm / gradient_scale(trainer, optimizer)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Return what was taken before the step."""
        measured, self._measured = self._measured, {}
        return measured

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Forget what was taken in a step that was not finished."""
        self._measured = {}


def _where(trainer: Trainer, optimizer: Any) -> str:
    index = next((i for i, other in enumerate(trainer.optimizers) if other is optimizer), 0)
    return f"/{index}" if index else ""


def _norm(optimizer: Optimizer) -> Tensor | None:
    alike: dict[tuple[torch.device, torch.dtype], list[Tensor]] = {}  # one kernel for all gradients of a kind
    for group in optimizer.param_groups:
        for gradient in (p.grad for p in group["params"] if p.grad is not None):
            dense = gradient.coalesce().values() if gradient.is_sparse else gradient
            alike.setdefault((dense.device, dense.dtype), []).append(dense)
    norms: list[Any] = []
    for (_, dtype), gradients in alike.items():
        norms += torch._foreach_norm(gradients, 2, dtype=torch.promote_types(dtype, torch.float32))
    if not norms:
        return None
    norms = [norm.full_tensor() if hasattr(norm, "full_tensor") else norm for norm in norms]  # of a DTensor
    return torch.linalg.vector_norm(torch.stack([norm.to(norms[0]) for norm in norms]))
