# SPDX-License-Identifier: Apache-2.0
"""A classifier of handwritten digits to train for seconds on a CPU, with BatchNorm and Dropout if asked."""

from typing import Any, Literal, get_args

import torch.nn.functional as F
from lightning.pytorch import LightningModule
from torch import Tensor
from torch.optim import AdamW
from torchmetrics.classification import MulticlassAccuracy

from lightning_stable.testbeds.adamw_groups import adamw_groups
from lightning_stable.testbeds.arguments import require_at_least, require_dropout, require_one_of
from lightning_stable.testbeds.digit_networks import ImageNorm, ViT, conv, mlp

Architecture = Literal["mlp", "conv", "vit"]


class DigitsClassifier(LightningModule):
    """Ten classes, cross-entropy in nats, on batches `{"pixels": [B, 1, 8, 8], "targets": [B]}`.

    Logs `train_loss` at every step, and `val_loss` and `val_accuracy` (a share of 1) after each validation.

    Args:
        architecture: `mlp`, `conv` or `vit`.
        width: Channels of the hidden layers; a multiple of 4 for the vit.
        dropout: Chance of dropping, in every architecture.
        norm: `batch` puts BatchNorm into every architecture; the vit has LayerNorm in its blocks either way.
        lr: Learning rate of AdamW, where no other optimizer is configured.
        weight_decay: Decay of weights; norms and biases have none.

    Raises:
        ValueError: If an argument is out of bounds.

    Example:
        >>> model = DigitsClassifier(architecture="conv", width=8)
        >>> model.hparams["architecture"], model.lr
        ('conv', 0.001)
    """

    def __init__(
        self,
        architecture: Architecture = "mlp",
        width: int = 64,
        dropout: float = 0.1,
        norm: ImageNorm = "batch",
        lr: float = 1e-3,
        weight_decay: float = 0.01,
    ) -> None:
        super().__init__()
        require_one_of("DigitsClassifier", get_args(Architecture), architecture=architecture)
        require_one_of("DigitsClassifier", get_args(ImageNorm), norm=norm)
        require_at_least("DigitsClassifier", 1, width=width)
        require_dropout("DigitsClassifier", dropout)
        self.save_hyperparameters()
        self.lr = lr
        self.weight_decay = weight_decay
        self.network = {"mlp": mlp, "conv": conv, "vit": ViT}[architecture](width, dropout, norm)
        self.val_accuracy = MulticlassAccuracy(num_classes=10, average="micro")

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits [B, 10]."""
        return self.network(pixels)

    def training_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> Tensor:
        """Return the mean cross-entropy of the batch."""
        loss = F.cross_entropy(self(batch["pixels"]), batch["targets"])
        self.log("train_loss", loss, on_step=True, prog_bar=True, batch_size=len(batch["targets"]))
        return loss

    def validation_step(self, batch: dict[str, Tensor], batch_idx: int = 0) -> None:
        """Log cross-entropy and accuracy over all of validation."""
        logits = self(batch["pixels"])
        self.val_accuracy(logits, batch["targets"])
        options: dict[str, Any] = {"on_epoch": True, "prog_bar": True, "batch_size": len(batch["targets"])}
        self.log("val_loss", F.cross_entropy(logits, batch["targets"]), sync_dist=True, **options)
        self.log("val_accuracy", self.val_accuracy, **options)

    def configure_optimizers(self) -> AdamW:
        """Return AdamW, with decay on weights only."""
        return AdamW(adamw_groups(self, self.weight_decay), lr=self.lr)
