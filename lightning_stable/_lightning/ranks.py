# SPDX-License-Identifier: Apache-2.0
"""What each rank knows alone: for a checkpoint, which holds the callbacks of rank 0 only, and for decisions of all."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer


def of_all_ranks(trainer: Trainer, own: Any) -> list[Any]:
    """What every rank has for `own`, by rank; with several, each of them must call this."""
    if trainer.world_size == 1:
        return [own]
    found: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(found, own)
    return found


def sum_over_ranks(trainer: Trainer, own: Sequence[float]) -> list[float]:
    """Every number added up over all ranks, in float64; with several, each of them must call this."""
    if trainer.world_size == 1:
        return [float(number) for number in own]
    numbers = torch.tensor(own, dtype=torch.float64, device=trainer.strategy.root_device)
    dist.all_reduce(numbers)
    return numbers.tolist()
