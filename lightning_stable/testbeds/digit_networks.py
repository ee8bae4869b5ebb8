# SPDX-License-Identifier: Apache-2.0
"""Three small networks from images [B, 1, 8, 8] to ten logits: a perceptron, a convolutional net, a transformer."""

from typing import Literal

from torch import Tensor, nn

from lightning_stable.testbeds.gpt import Block

ImageNorm = Literal["batch", "none"]
_CLASSES = 10


def mlp(width: int = 64, dropout: float = 0.1, norm: ImageNorm = "batch") -> nn.Sequential:
    """Return a perceptron with two hidden layers: linear, norm, relu, dropout.

    Example:
        >>> import torch
        >>> mlp(width=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    hidden = [_dense(n_in, width, dropout, norm) for n_in in (64, width)]
    return nn.Sequential(nn.Flatten(), *hidden, nn.Linear(width, _CLASSES))


def conv(width: int = 64, dropout: float = 0.1, norm: ImageNorm = "batch") -> nn.Sequential:
    """Return a convolutional net with two layers, each: 3 x 3 convolution, norm, relu, max-pooling; then a mean.

    Example:
        >>> import torch
        >>> conv(width=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """
    layers = [_convolution(n_in, width, norm) for n_in in (1, width)]
    return nn.Sequential(
        *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Dropout(dropout), nn.Linear(width, _CLASSES)
    )


class ViT(nn.Module):
    """A vision transformer: sixteen patches of 2 x 2 pixels, learned positions, two pre-norm blocks, a mean.

    Paper: Dosovitskiy et al., "An Image is Worth 16x16 Words", 2021.
    Deviations: mean of the patches and no class token; with `norm="batch"` a BatchNorm after the patch embedding.

    Args:
        width: Channels, a multiple of four.
        dropout: As in `Block`.
        norm: Of the patch embedding; the blocks have LayerNorm.
        n_layer: Blocks.

    Example:
        >>> import torch
        >>> ViT(width=8)(torch.zeros(2, 1, 8, 8)).shape
        torch.Size([2, 10])
    """

    def __init__(self, width: int = 64, dropout: float = 0.1, norm: ImageNorm = "batch", n_layer: int = 2) -> None:
        super().__init__()
        if width % 4:
            raise ValueError(f"`DigitsClassifier(width=...)` must be a multiple of 4 for the vit, got {width}.")
        self.patch = nn.Conv2d(1, width, kernel_size=2, stride=2)
        self.patch_norm = nn.BatchNorm2d(width) if norm == "batch" else nn.Identity()
        self.position = nn.Embedding(16, width)
        self.dropout = nn.Dropout(dropout)
        self.blocks = nn.ModuleList(Block(width, n_head=4, dropout=dropout, causal=False) for _ in range(n_layer))
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, _CLASSES)

    def forward(self, pixels: Tensor) -> Tensor:
        """Return the logits [B, 10] of `pixels` [B, 1, 8, 8]."""
        x = self.patch_norm(self.patch(pixels)).flatten(2).transpose(1, 2)  # [B, 16, width]
        x = self.dropout(x + self.position.weight)
        for block in self.blocks:
            x = block(x)
        return self.head(self.norm(x).mean(dim=1))


def _dense(n_in: int, n_out: int, dropout: float, norm: ImageNorm) -> nn.Sequential:
    between = nn.BatchNorm1d(n_out) if norm == "batch" else nn.Identity()
    return nn.Sequential(nn.Linear(n_in, n_out), between, nn.ReLU(), nn.Dropout(dropout))


def _convolution(n_in: int, n_out: int, norm: ImageNorm) -> nn.Sequential:
    between = nn.BatchNorm2d(n_out) if norm == "batch" else nn.Identity()
    return nn.Sequential(nn.Conv2d(n_in, n_out, kernel_size=3, padding=1), between, nn.ReLU(), nn.MaxPool2d(2))
