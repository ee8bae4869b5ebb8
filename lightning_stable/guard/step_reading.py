# SPDX-License-Identifier: Apache-2.0
"""What the guard reads of a step, the same on all ranks: one collective call and one wait for the device.

A second one of each, to find the entries, only if the norm of the gradients is not finite, which all ranks know alike.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable._lightning.trainer import gradient_scaler
from lightning_stable.functional.tensor_norms import copies_of, local
from lightning_stable.guard.signals import GRAD_NORM, LARGEST_LOSS, LOSS

_NAMED = 3  # parameters whose gradients are not finite; a NaN is soon in all of them


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
        non_finite_losses: How many losses of the window are NaN or infinite, over all ranks.
        non_finite_gradients: From parameter to how many entries of its gradient are, where there are any; what several
            ranks hold alike counts once. A norm may be infinite where all entries are finite.
        sigterm: Whether a rank of several was told to end.

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
    non_finite_losses: int = 0
    non_finite_gradients: dict[str, int] = field(default_factory=dict)
    sigterm: bool = False

    @property
    def is_finite(self) -> bool:
        """Whether loss and gradients are."""
        return math.isfinite(self.norm) and (self.loss is None or math.isfinite(self.loss))

    @property
    def is_overflow(self) -> bool:
        """Whether it is the gradient scaler's to skip, and to learn from."""
        return self.scale > 1.0 and not math.isfinite(self.norm) and (self.loss is None or math.isfinite(self.loss))

    def signals(self, suffix: str) -> dict[str, float]:
        """The numbers by the names they are watched by, with `suffix` behind those that every optimizer has."""
        numbers = {GRAD_NORM: self.norm, LOSS: self.loss, LARGEST_LOSS: self.largest_loss}
        return {**{f"{key}{suffix}": value for key, value in numbers.items() if value is not None}, **self.logged}


def read_step(
    trainer: Trainer,
    optimizer: Optimizer,
    losses: Sequence[Tensor],
    logged: Mapping[str, float],
    keys: Sequence[str],
    sigterm: bool = False,
) -> StepReading:
    """Read a step, and combine it over the ranks; with several, each of them must call this at the same step.

    Args:
        trainer: The trainer in its `fit`.
        optimizer: The one that is about to step.
        losses: What `backward` was called on since the optimizer's last step.
        logged: Watched keys that were logged on this rank since then.
        keys: All that are watched, in the same order on all ranks.
        sigterm: Whether this rank was told to end.

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
        rows = _gather(_packed(optimizer, losses, logged, keys, trainer.world_size, sigterm), trainer)
        reading = _combined(rows, keys, factor, unscale, scale)
    else:
        reading = _read_alone(optimizer, losses, logged, factor, unscale, scale)
    if math.isfinite(reading.norm):
        return reading
    return replace(reading, non_finite_gradients=_non_finite_gradients(trainer, optimizer))


def _read_alone(
    optimizer: Optimizer,
    losses: Sequence[Tensor],
    logged: Mapping[str, float],
    factor: float,
    unscale: float,
    scale: float,
) -> StepReading:
    norm = gradient_norm(optimizer).float()
    on_device = [loss.to(norm.device, torch.float32).mean() for loss in losses]
    *values, norm_value = torch.stack([*on_device, norm]).tolist()
    loss = factor * sum(values) / len(values) if values else None
    bad = sum(not math.isfinite(value) for value in values)
    return StepReading(loss, norm_value / unscale, scale, logged=dict(logged), non_finite_losses=bad)


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


def describe(non_finite: Mapping[str, int]) -> str:
    """How many entries are not finite, and the first parameters they are in.

    Example:
        >>> describe({"head.weight": 12, "head.bias": 1})
        '13 gradient entries are not finite, in head.weight, head.bias'
    """
    count, more = sum(non_finite.values()), len(non_finite) - _NAMED
    names = ", ".join(list(non_finite)[:_NAMED]) + (f" and {more} more" if more > 0 else "")
    return f"{count} gradient {'entry is' if count == 1 else 'entries are'} not finite, in {names}"


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
    optimizer: Optimizer,
    losses: Sequence[Tensor],
    logged: Mapping[str, float],
    keys: Sequence[str],
    world_size: int,
    sigterm: bool,
) -> Tensor:
    """This rank's row: its share of the squared norm, bad losses, whether it is to end, and loss and keys, if any.

    Before the loss, and before each key, stands whether there is one.
    """
    gradients = _gradients(optimizer)
    device = local(gradients[0]).device if gradients else losses[0].device if losses else torch.device("cpu")
    squares = [
        torch.linalg.vector_norm(local(gradient), dtype=torch.promote_types(gradient.dtype, torch.float32)).double()
        ** 2
        / copies_of(gradient, world_size)
        for gradient in gradients
    ]
    share = torch.stack(squares).sum() if squares else torch.zeros((), dtype=torch.float64, device=device)
    values = torch.stack([loss.to(device, torch.float64).mean() for loss in losses]) if losses else share.new_zeros(1)
    bad = (~values.isfinite()).sum().to(torch.float64)
    numbers = [number for key in keys for number in (float(key in logged), logged.get(key, 0.0))]
    flags = share.new_tensor([float(sigterm), float(bool(losses))])
    return torch.cat([torch.stack([share, bad]), flags, values.mean().reshape(1), share.new_tensor(numbers)])


def _non_finite_gradients(trainer: Trainer, optimizer: Optimizer) -> dict[str, int]:
    """From parameter to how many entries of its gradient are NaN or infinite, over all ranks."""
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    device = trainer.strategy.root_device
    counts = torch.stack(
        [_non_finite_entries(parameter.grad, trainer.world_size).to(device) for parameter in parameters]
    )
    if trainer.world_size > 1:
        dist.all_reduce(counts)
    names = {parameter: name for name, parameter in trainer.lightning_module.named_parameters()}
    numbered = enumerate(zip(parameters, counts.tolist(), strict=True))
    found = {names.get(parameter, f"parameter {index}"): round(count) for index, (parameter, count) in numbered}
    return {name: count for name, count in found.items() if count}


def _non_finite_entries(gradient: Tensor | None, world_size: int) -> Tensor:
    """How many entries of what this rank holds; of what others hold too, its share."""
    if gradient is None:
        return torch.zeros((), dtype=torch.float64)
    entries = local(_entries(gradient))
    return (~entries.isfinite()).sum().to(torch.float64) / copies_of(gradient, world_size)


def _gather(row: Tensor, trainer: Trainer) -> list[list[float]]:
    """The rows of all ranks, in one all-reduce: each adds its own to zeros."""
    row = row.to(trainer.strategy.root_device)
    table = row.new_zeros(trainer.world_size, len(row))
    table[trainer.global_rank] = row
    dist.all_reduce(table)
    return table.tolist()


def _combined(rows: list[list[float]], keys: Sequence[str], factor: float, unscale: float, scale: float) -> StepReading:
    losses = {rank: factor * row[4] for rank, row in enumerate(rows) if row[3]}
    rank = max(losses, key=lambda each: losses[each] if math.isfinite(losses[each]) else math.inf, default=None)
    logged = {}
    for index, key in enumerate(keys):
        values = [row[6 + 2 * index] for row in rows if row[5 + 2 * index]]
        if values:
            logged[key] = sum(values) / len(values)
    return StepReading(
        loss=sum(losses.values()) / len(losses) if losses else None,
        norm=math.sqrt(sum(row[0] for row in rows)) / unscale,
        scale=scale,
        largest_loss=None if rank is None else losses[rank],
        logged=logged,
        rank=rank,
        non_finite_losses=round(sum(row[1] for row in rows)),
        sigterm=any(row[2] for row in rows),
    )


def _gradients(optimizer: Optimizer) -> list[Tensor]:
    parameters = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    return [_entries(parameter.grad) for parameter in parameters if parameter.grad is not None]


def _entries(gradient: Tensor) -> Tensor:
    """The gradient itself, or of a sparse one the entries that are there."""
    return gradient.coalesce().values() if gradient.is_sparse else gradient
