# SPDX-License-Identifier: Apache-2.0
"""A byte-level language model to train for minutes on a CPU."""

import math
from typing import Any

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import AdamW

from lightning_stable.testbeds.adamw_groups import adamw_groups
from lightning_stable.testbeds.gpt import GPT, NormPlacement


class CharLM(LightningModule):
    """Next-byte prediction with a small `GPT`; cross-entropy in nats.

    A batch is `{"tokens": [B, T], "targets": [B, T], "embedding_scale": [B]}`, as `PythonTextDataModule` makes it.
    Logs `train_loss` at every step, and `val_loss` and `val_bits_per_byte` (`val_loss` / ln 2) after each validation.

    Args:
        n_layer: Blocks.
        n_head: Attention heads of a block.
        d_model: Channels.
        context: The most bytes of a sample.
        dropout: Chance of dropping, see `GPT`.
        norm_placement: `pre` or `post`, see `GPT`.
        tie_head: Whether the head is the byte embedding.
        lr: Learning rate of AdamW, where no other optimizer is configured.
        weight_decay: Decay of matrices; norms and biases have none.
        betas: Of AdamW; 0.95 is what language models use.

    Raises:
        ValueError: If an argument is out of bounds.

    Example:
        >>> model = CharLM(n_layer=1, n_head=2, d_model=8, context=4)
        >>> [len(group["params"]) for group in model.configure_optimizers().param_groups]
        [6, 10]
    """

    def __init__(
        self,
        n_layer: int = 4,
        n_head: int = 4,
        d_model: int = 128,
        context: int = 128,
        dropout: float = 0.0,
        norm_placement: NormPlacement = "pre",
        tie_head: bool = True,
        lr: float = 1e-3,
        weight_decay: float = 0.1,
        betas: tuple[float, float] = (0.9, 0.95),
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.lr = lr
        self.weight_decay = weight_decay
        self.betas = betas
        self.gpt = GPT(256, n_layer, n_head, d_model, context, dropout, norm_placement, tie_head)

    def forward(self, tokens: Tensor, embedding_scale: Tensor | None = None) -> Tensor:
        """Return the logits [B, T, 256] of the next byte."""
        return self.gpt(tokens, embedding_scale)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Tensor:
        """Return the mean cross-entropy of the batch."""
        loss = self._loss(batch)
        self.log("train_loss", loss, on_step=True, prog_bar=True, batch_size=len(batch["tokens"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> None:
        """Log the mean cross-entropy over all of validation, in nats and in bits."""
        loss = self._loss(batch)
        options: dict[str, Any] = {"on_epoch": True, "sync_dist": True, "batch_size": len(batch["tokens"])}
        self.log("val_loss", loss, prog_bar=True, **options)
        self.log("val_bits_per_byte", loss / math.log(2), **options)

    def configure_optimizers(self) -> AdamW:
        """Return AdamW, with decay on matrices only."""
        return AdamW(adamw_groups(self, self.weight_decay), lr=self.lr, betas=self.betas)

    def _loss(self, batch: dict[str, Tensor]) -> Tensor:
        logits = self(batch["tokens"], batch.get("embedding_scale"))
        return F.cross_entropy(logits.flatten(0, 1), batch["targets"].flatten())
