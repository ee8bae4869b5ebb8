# SPDX-License-Identifier: Apache-2.0
"""The small network under Lightning, on one rank or two."""

from pathlib import Path
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from tests.distributed.processes import Net, batch


class Fitted(LightningModule):
    """The network under Lightning; on two ranks sharded, if the strategy knows of a mesh."""

    def __init__(
        self, kind: type[torch.optim.Optimizer], settings: dict[str, Any], net: Net, faults: bool = True
    ) -> None:
        super().__init__()
        self.net, self.kind, self.settings, self.faults = net, kind, settings, faults

    def configure_model(self) -> None:
        if self.device_mesh is not None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, _, batch_idx):
        step, ranks = self.global_step + 1, (self.global_rank,) if self.trainer.world_size == 2 else (0, 1)
        return sum(self.net(*batch(step, rank, self.net, self.faults)) / len(ranks) for rank in ranks)

    def on_before_optimizer_step(self, optimizer) -> None:
        if hasattr(optimizer, "update_hessian") and self.global_step % 5 == 4:
            optimizer.update_hessian(batch_size=12)

    def configure_optimizers(self):
        return self.kind(self.parameters(), **self.settings)


def strategy_for(wrap: str):
    """For "copies" of the network, "shards", or "shards, one file" for all shards in a checkpoint."""
    if wrap == "copies":
        return "ddp"
    return ModelParallelStrategy(2, 1, save_distributed_checkpoint=wrap != "shards, one file")


def fit(module: Fitted, steps: int, ckpt_path: Path | None = None, **settings: Any) -> Trainer:
    """Train up to a step in one epoch; batches are found by the number of the step."""
    trainer = Trainer(
        accelerator="cpu",
        max_steps=steps,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        log_every_n_steps=1,
        **{"devices": 1, **settings},
    )
    trainer.fit(module, DataLoader(torch.zeros(200)), ckpt_path=ckpt_path)
    return trainer
