# SPDX-License-Identifier: Apache-2.0
"""What the guard reads of a step, the same on all ranks: one collective call and one wait for the device."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable._lightning.trainer import gradient_scaler
from lightning_stable.functional.tensor_norms import copies_of, local


@dataclass(frozen=True)
class StepReading:
    """The numbers of one optimizer's step, over all ranks.

    Args:
        loss: Mean over the window and the ranks; `None` if there was no backward pass since the last step.
        largest_loss: Of the ranks; `None` in one process.
        norm: l2 norm of the unscaled gradients before clipping.
        scale: Of the gradient scaler; 1 without one.
        logged: Watched keys that were logged, the mean of the ranks that have.
        rank: Of the largest loss, or of the first one that is not finite; `None` in one process.

    Example:
        >>> StepReading(loss=2.0, norm=1.0).is_finite
        True
    """

    loss: float | None
    norm: float
    scale: float = 1.0
    largest_loss: float | None = None
    logged: dict[str, float] = field(default_factory=dict)
    rank: int | None = None

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradients are."""
        return math.isfinite(self.norm) and (self.loss is None or math.isfinite(self.loss))

    @property
    def is_overflow(self) -> bool:
        """Whether it is the gradient scaler's to skip, and to learn from."""
        return self.scale > 1.0 and not math.isfinite(self.norm) and (self.loss is None or math.isfinite(self.loss))


def read_step(
    trainer: Trainer,
    optimizer: Optimizer,
    losses: Sequence[Tensor],
    logged: Mapping[str, float],
    keys: Sequence[str],
) -> StepReading:
    """Read a step, and combine it over the ranks; with several, each of them must call this at the same step.

    Args:
        trainer: The trainer in its `fit`.
        optimizer: The one that is about to step.
        losses: What `backward` was called on since the optimizer's last step.
        logged: Watched keys that were logged on this rank since then.
        keys: All that are watched, in the same order on all ranks.

    Example:
        >>> read_step.__name__  # needs a running fit; see `SpikeGuard`
        'read_step'
    """
    scaler = gradient_scaler(trainer)
    scale = 1.0 if scaler is None else float(scaler.get_scale())
    # a fused optimizer unscales within its step
    unscale = scale if scale != 1.0 and getattr(optimizer, "_step_supports_amp_scaling", False) else 1.0
    # a loss arrives divided by the number of micro-batches and multiplied by the scale
    accumulated = trainer.accumulate_grad_batches if trainer.lightning_module.automatic_optimization else 1
    factor = accumulated / scale
    if trainer.world_size > 1:
        rows = _gather(_packed(optimizer, losses, logged, keys, trainer.world_size), trainer)
        return _combined(rows, keys, factor, unscale, scale)
    norm = gradient_norm(optimizer).float()
    on_device = [loss.to(norm.device, torch.float32).mean() for loss in losses]
    *values, norm_value = torch.stack([*on_device, norm]).tolist()
    loss = factor * sum(values) / len(values) if values else None
    return StepReading(loss, norm_value / unscale, scale, logged=dict(logged))


def gradient_norm(optimizer: Optimizer) -> Tensor:
    """The l2 norm over all gradients the optimizer is about to use; 0 if there are none.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> parameter.grad = torch.tensor([3.0, 4.0])
        >>> gradient_norm(torch.optim.SGD([parameter], lr=0.1)).item()
        5.0
    """
    gradients = _gradients(optimizer)
    return torch.nn.utils.get_total_norm(gradients) if gradients else torch.zeros(())


def signal_suffix(optimizers: Sequence[Optimizer], optimizer: Optimizer) -> str:
    """Tells the signals of several optimizers apart: nothing for the first, `/1` for the second.

    Example:
        >>> first, second = (torch.optim.SGD([torch.nn.Parameter(torch.zeros(2))]) for _ in range(2))
        >>> signal_suffix([first, second], second)
        '/1'
    """
    index = next(index for index, known in enumerate(optimizers) if known is optimizer)
    return f"/{index}" if index else ""


def _packed(
    optimizer: Optimizer, losses: Sequence[Tensor], logged: Mapping[str, float], keys: Sequence[str], world_size: int
) -> Tensor:
    """This rank's row: its share of the squared norm, then loss and keys, before each whether there is one."""
    gradients = _gradients(optimizer)
    device = local(gradients[0]).device if gradients else losses[0].device if losses else torch.device("cpu")
    squares = [
        torch.linalg.vector_norm(local(gradient), dtype=torch.promote_types(gradient.dtype, torch.float32)).double()
        ** 2
        / copies_of(gradient, world_size)
        for gradient in gradients
    ]
    share = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64, device=device)
    loss = (
        torch.stack([loss.to(device, torch.float64).mean() for loss in losses]).mean()
        if losses
        else share.new_zeros(())
    )
    numbers = [number for key in keys for number in (float(key in logged), logged.get(key, 0.0))]
    return torch.cat([torch.stack([share, share.new_tensor(float(bool(losses))), loss]), share.new_tensor(numbers)])


def _gather(row: Tensor, trainer: Trainer) -> list[list[float]]:
    """The rows of all ranks, in one all-reduce: each adds its own to zeros."""
    row = row.to(trainer.strategy.root_device)
    table = row.new_zeros(trainer.world_size, len(row))
    table[trainer.global_rank] = row
    dist.all_reduce(table)
    return table.tolist()


def _combined(rows: list[list[float]], keys: Sequence[str], factor: float, unscale: float, scale: float) -> StepReading:
    losses = {rank: factor * row[2] for rank, row in enumerate(rows) if row[1]}
    rank = max(losses, key=lambda each: losses[each] if math.isfinite(losses[each]) else math.inf, default=None)
    logged = {}
    for index, key in enumerate(keys):
        values = [row[4 + 2 * index] for row in rows if row[3 + 2 * index]]
        if values:
            logged[key] = sum(values) / len(values)
    return StepReading(
        loss=sum(losses.values()) / len(losses) if losses else None,
        norm=math.sqrt(sum(row[0] for row in rows)) / unscale,
        scale=scale,
        largest_loss=None if rank is None else losses[rank],
        logged=logged,
        rank=rank,
    )


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    return [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
