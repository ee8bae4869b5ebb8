# SPDX-License-Identifier: Apache-2.0
"""What each rank knows alone, for a checkpoint, which holds the callbacks of rank 0 only."""

from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer


def of_all_ranks(trainer: Trainer, own: Any) -> list[Any]:
    """What every rank has for `own`, by rank; with several, each of them must call this."""
    if trainer.world_size == 1:
        return [own]
    found: list[Any] = [None] * trainer.world_size
    dist.all_gather_object(found, own)
    return found
