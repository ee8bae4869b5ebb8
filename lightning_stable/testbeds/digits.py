# SPDX-License-Identifier: Apache-2.0
"""Handwritten digits of 8 by 8 pixels, which scikit-learn brings along."""

from collections.abc import Sequence

import torch
from lightning.pytorch import LightningDataModule

from lightning_stable.testbeds.corruption import Batch, Corruption
from lightning_stable.testbeds.data_plan import DataPlan, StreamLoader
from lightning_stable.testbeds.seeding import seeded_generator

_VALIDATION_SAMPLES = 360  # a fifth of 1797


class LabelledImages:
    """Images and their labels.

    Args:
        pixels: [N, 1, height, width], in [0, 1].
        targets: [N] integers.

    Example:
        >>> images = LabelledImages(torch.zeros(3, 1, 2, 2), torch.tensor([7, 8, 9]))
        >>> images.batch([2, 0])["targets"]
        tensor([9, 7])
    """

    def __init__(self, pixels: torch.Tensor, targets: torch.Tensor) -> None:
        self.pixels = pixels
        self.targets = targets

    def __len__(self) -> int:
        return len(self.targets)

    def batch(self, samples: Sequence[int]) -> Batch:
        """Return the named images, in their order.

        Example:
            >>> LabelledImages(torch.zeros(3, 1, 2, 2), torch.tensor([7, 8, 9])).batch([1])["pixels"].shape
            torch.Size([1, 1, 2, 2])
        """
        index = torch.tensor(samples)
        return {"pixels": self.pixels[index], "targets": self.targets[index]}


class DigitsDataModule(LightningDataModule):
    """Batches `{"pixels": [B, 1, 8, 8] in [0, 1], "targets": [B]}` of 1,437 training and 360 validation digits.

    The split is always the same. The order of training batches depends on `seed` and the epoch alone: not on
    `num_workers`, not on any global random number. A run resumed in the middle of an epoch goes on with the next batch.

    Args:
        batch_size: Samples a batch.
        batches_per_epoch: Training batches an epoch, dropped ones included; by default what the data gives.
        num_workers: Processes that read; the batches are the same for any number.
        seed: Decides the order of the training data.
        corrupt: Corruptions of training batches; validation is never corrupted.
        drop: Training batches that the loader never holds, by their index over the whole stream (as in
            `Corruption(batches=...)`). All others stay as they are; epochs get shorter. Where that makes epochs of
            different lengths, use `Trainer(reload_dataloaders_every_n_epochs=1)`.

    Raises:
        ValueError: If an argument is out of bounds.
        ImportError: In `setup`, if scikit-learn is missing.

    Example:
        >>> data = DigitsDataModule(batch_size=32)
        >>> data.setup("fit")
        >>> len(data.train_dataloader()), len(data.val_dataloader())
        (44, 12)
        >>> next(iter(data.train_dataloader()))["pixels"].shape
        torch.Size([32, 1, 8, 8])
    """

    def __init__(
        self,
        batch_size: int = 32,
        batches_per_epoch: int | None = None,
        num_workers: int = 0,
        seed: int = 0,
        corrupt: list[Corruption] | None = None,
        drop: list[int] | None = None,
    ) -> None:
        super().__init__()
        self.plan = DataPlan("DigitsDataModule", batch_size, batches_per_epoch, num_workers, seed, corrupt, drop)
        self.train_images: LabelledImages | None = None
        self.val_images: LabelledImages | None = None

    def setup(self, stage: str | None = None) -> None:
        """Read the digits and split them."""
        if self.train_images is None:
            self.train_images, self.val_images = _digits()

    def train_dataloader(self) -> StreamLoader:
        """Return the training stream of this process."""
        self.setup("fit")
        assert self.train_images is not None
        return self.plan.training(self.train_images, self.trainer)

    def val_dataloader(self) -> StreamLoader:
        """Return the validation batches."""
        self.setup("validate")
        assert self.val_images is not None
        return self.plan.validation(self.val_images)


def _digits() -> tuple[LabelledImages, LabelledImages]:
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise ImportError(
            "`DigitsDataModule` needs scikit-learn. Run `pip install 'lightning-stable[recipes]'`."
        ) from error
    images, labels = load_digits(return_X_y=True)
    pixels = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    targets = torch.tensor(labels, dtype=torch.int64)
    order = torch.randperm(len(targets), generator=seeded_generator("digits split"))
    val, train = order[:_VALIDATION_SAMPLES], order[_VALIDATION_SAMPLES:]
    return LabelledImages(pixels[train], targets[train]), LabelledImages(pixels[val], targets[val])
