# SPDX-License-Identifier: Apache-2.0
"""Bad batches on purpose: what a broken shard, a wrong label file or a bad augmentation puts into a loader.

A corruption of a batch is a function of the batch and of a generator; it returns a new batch and leaves the old one
as it was. A text batch holds `tokens`, `targets`, `embedding_scale`; an image batch holds `pixels`, `targets`.
"""

import difflib
from collections.abc import Callable
from dataclasses import dataclass

import torch

from lightning_stable.testbeds.seeding import seeded_generator

Batch = dict[str, torch.Tensor]


def random_bytes(batch: Batch, generator: torch.Generator) -> Batch:
    """Replace the inputs by uniform noise; the targets of a text are the next bytes of that noise.

    Example:
        >>> batch = {"tokens": torch.zeros(1, 4).long(), "targets": torch.zeros(1, 4).long()}
        >>> noise = random_bytes(batch, seeded_generator(0))
        >>> torch.equal(noise["tokens"][:, 1:], noise["targets"][:, :-1])
        True
    """
    if "pixels" in batch:
        return batch | {"pixels": torch.randint(256, batch["pixels"].shape, generator=generator) / 255}
    n_samples, length = batch["tokens"].shape
    noise = torch.randint(256, (n_samples, length + 1), generator=generator)
    return batch | {"tokens": noise[:, :-1].contiguous(), "targets": noise[:, 1:].contiguous()}


def constant(batch: Batch, generator: torch.Generator) -> Batch:
    """Replace every byte, inputs and text targets alike, by NUL, as a hole in a file does; an image becomes blank.

    Example:
        >>> constant({"pixels": torch.ones(2), "targets": torch.ones(2)}, seeded_generator(0))
        {'pixels': tensor([0., 0.]), 'targets': tensor([1., 1.])}
    """
    blank = ("pixels",) if "pixels" in batch else ("tokens", "targets")
    return batch | {key: torch.zeros_like(batch[key]) for key in blank}


def shuffled_labels(batch: Batch, generator: torch.Generator) -> Batch:
    """Permute the targets over the whole batch.

    Example:
        >>> shuffled_labels({"targets": torch.arange(4)}, seeded_generator(0))["targets"].sort().values
        tensor([0, 1, 2, 3])
    """
    targets = batch["targets"]
    order = torch.randperm(targets.numel(), generator=generator)
    return batch | {"targets": targets.flatten()[order].view(targets.shape)}


def nan_embedding(batch: Batch, generator: torch.Generator) -> Batch:
    """Make the embeddings of the tokens, or the pixels, NaN.

    Example:
        >>> nan_embedding({"embedding_scale": torch.ones(2)}, seeded_generator(0))
        {'embedding_scale': tensor([nan, nan])}
    """
    return _scaled(batch, float("nan"))


def huge_scale(batch: Batch, generator: torch.Generator) -> Batch:
    """Multiply the embeddings of the tokens, or the pixels, by 10,000.

    Example:
        >>> huge_scale({"pixels": torch.ones(2)}, seeded_generator(0))
        {'pixels': tensor([10000., 10000.])}
    """
    return _scaled(batch, 1e4)


def _scaled(batch: Batch, factor: float) -> Batch:
    key = "pixels" if "pixels" in batch else "embedding_scale"
    return batch | {key: batch[key] * factor}


_KINDS: dict[str, Callable[[Batch, torch.Generator], Batch]] = {
    kind.__name__: kind for kind in (random_bytes, constant, shuffled_labels, nan_embedding, huge_scale)
}


@dataclass(frozen=True)
class Corruption:
    """Which batches of a training stream are corrupted, and how; a batch is corrupted whole.

        batch i is hit  <=>  i in batches,  or  u(seed, i) < fraction  with u uniform in [0, 1)

    Two corruptions with one `seed` and one `fraction` hit the same batches, whatever their `kind`, so that kinds can
    be compared; give them different seeds to hit different ones.

    Args:
        kind: `random_bytes`, `constant`, `shuffled_labels`, `nan_embedding` or `huge_scale`.
        fraction: Chance of each batch to be hit, in (0, 1]. Exactly one of `fraction` and `batches` is given.
        batches: The batches that are hit, counted over the whole stream: `epoch * batches_per_epoch + batch_idx`.
        seed: Decides which batches a fraction hits, and what noise they hold.

    Raises:
        ValueError: If `kind` is unknown, not exactly one of `fraction` and `batches` is given, or one is out of bounds.

    Example:
        >>> corruption = Corruption("constant", batches=[2])
        >>> [corruption.hits(batch) for batch in range(4)]
        [False, False, True, False]
        >>> corruption.apply({"pixels": torch.ones(2)}, batch_index=2)
        {'pixels': tensor([0., 0.])}
    """

    kind: str
    fraction: float = 0.0
    batches: list[int] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if self.kind not in _KINDS:
            raise ValueError(_unknown_kind(self.kind))
        if not 0.0 <= self.fraction <= 1.0:
            raise ValueError(f"`Corruption(fraction=...)` must be in (0, 1], got {self.fraction}.")
        if (self.fraction > 0.0) == (self.batches is not None):
            raise ValueError(
                "`Corruption` needs exactly one of `fraction` (above 0) and `batches`, "
                f"got fraction={self.fraction}, batches={self.batches}."
            )
        if self.batches and min(self.batches) < 0:
            raise ValueError(f"`Corruption(batches=...)` must be at least 0, got {min(self.batches)}.")

    def hits(self, batch_index: int) -> bool:
        """Whether the batch with this index in the whole stream is corrupted.

        Example:
            >>> sum(Corruption("constant", fraction=0.5).hits(batch) for batch in range(1000))
            488
        """
        if self.batches is not None:
            return batch_index in self.batches
        generator = seeded_generator(self.seed, "hit", batch_index)
        return torch.rand((), dtype=torch.float64, generator=generator).item() < self.fraction

    def apply(self, batch: Batch, batch_index: int) -> Batch:
        """Return the corrupted batch; its noise is a function of `seed` and `batch_index` alone.

        Example:
            >>> Corruption("huge_scale", fraction=1.0).apply({"pixels": torch.ones(1)}, batch_index=0)
            {'pixels': tensor([10000.])}
        """
        return _KINDS[self.kind](batch, seeded_generator(self.seed, "noise", batch_index))


def _unknown_kind(kind: str) -> str:
    near = difflib.get_close_matches(kind, _KINDS, n=1)
    hint = f" Did you mean {near[0]!r}?" if near else ""
    return f"`Corruption(kind=...)` must be one of {', '.join(map(repr, _KINDS))}, got {kind!r}.{hint}"
