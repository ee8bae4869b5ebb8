# SPDX-License-Identifier: Apache-2.0
"""What every data module here shares: which batches there are, which are corrupted, which are left out."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from lightning.pytorch import Trainer
from torch.utils.data import DataLoader, Dataset

from lightning_stable.testbeds.arguments import require_at_least
from lightning_stable.testbeds.batch_stream import BatchKey, BatchStream
from lightning_stable.testbeds.corruption import Batch, Corruption
from lightning_stable.testbeds.seeding import seeded_generator


class BatchSource(Protocol):
    """Samples that can be read as whole batches.

    Example:
        >>> import torch
        >>> class Numbers:
        ...     def __len__(self):
        ...         return 4
        ...     def batch(self, samples):
        ...         return {"pixels": torch.tensor(samples, dtype=torch.float32)}
        >>> len(DataPlan("Numbers", batch_size=2).training(Numbers()))
        2
    """

    def __len__(self) -> int: ...

    def batch(self, samples: Sequence[int]) -> Batch:
        """Return the named samples, in their order."""
        ...


class StreamLoader(DataLoader[Any]):
    """A `DataLoader` over a `BatchStream` that starts its workers with the first batch and knows how far it is.

    Lightning asks for the iterator before it says which epoch it is; workers that began to read then would read the
    wrong one after a resume. Lightning stores `state_dict` in checkpoints, so that a run saved in the middle of an
    epoch goes on with the batch that follows.

    Example:
        >>> loader = StreamLoader([10, 20], sampler=[1, 0], batch_size=None)
        >>> list(loader)
        [20, 10]
    """

    def __iter__(self) -> Iterator[Any]:  # pyright: ignore[reportIncompatibleMethodOverride]
        for batch in super().__iter__():
            if isinstance(self.sampler, BatchStream):
                self.sampler.position += 1
            yield batch

    def state_dict(self) -> dict[str, int]:
        """Return where in the stream this loader is.

        Example:
            >>> StreamLoader([10, 20], sampler=BatchStream(n_samples=2, batch_size=1), batch_size=None).state_dict()
            {'epoch': 0, 'position': 0}
        """
        return self.sampler.state_dict() if isinstance(self.sampler, BatchStream) else {}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Go on where `state_dict` was taken.

        Example:
            >>> loader = StreamLoader([10, 20], sampler=BatchStream(n_samples=2, batch_size=1), batch_size=None)
            >>> loader.load_state_dict({"epoch": 3, "position": 1})
            >>> loader.state_dict()
            {'epoch': 3, 'position': 1}
        """
        if isinstance(self.sampler, BatchStream):
            self.sampler.load_state_dict(state_dict)


class _Batches(Dataset[Batch]):
    """The batches of a source by their key, corrupted as told."""

    def __init__(self, source: BatchSource, corrupt: Sequence[Corruption] = ()) -> None:
        self.source = source
        self.corrupt = tuple(corrupt)

    def __getitem__(self, key: BatchKey) -> Batch:
        batch = self.source.batch(key.samples)
        for corruption in self.corrupt:
            if corruption.hits(key.batch):
                batch = corruption.apply(batch, key.batch)
        return batch


@dataclass(frozen=True)
class DataPlan:
    """The arguments that all data modules here share, checked, and the two loaders they lead to.

    Args:
        owner: Name of the data module, for the error messages.
        batch_size: Samples a batch.
        batches_per_epoch: Batches an epoch; by default what the data gives.
        num_workers: Processes that read; the batches are the same for any number.
        seed: Decides the order of the data, and nothing else does.
        corrupt: Corruptions of training batches; those of a later entry come on top.
        drop: Training batches that the loader never holds, by their index in the whole stream.

    Raises:
        ValueError: If a number is below its bound.
        TypeError: If an entry of `corrupt` is no `Corruption`.

    Example:
        >>> DataPlan("Numbers", batch_size=0)
        Traceback (most recent call last):
            ...
        ValueError: `Numbers(batch_size=...)` must be at least 1, got 0.
    """

    owner: str
    batch_size: int
    batches_per_epoch: int | None = None
    num_workers: int = 0
    seed: int = 0
    corrupt: Sequence[Corruption] | None = None
    drop: Sequence[int] | None = None

    def __post_init__(self) -> None:
        require_at_least(self.owner, 1, batch_size=self.batch_size, batches_per_epoch=self.batches_per_epoch)
        require_at_least(self.owner, 0, num_workers=self.num_workers, drop=min(self.drop or [0]))
        for corruption in self.corrupt or ():
            if not isinstance(corruption, Corruption):
                raise TypeError(
                    f"`{self.owner}(corrupt=...)` must be a list of `Corruption`, got {corruption!r}. "
                    "Write `Corruption(kind=..., fraction=...)`."
                )

    def training(self, source: BatchSource, trainer: Trainer | None = None) -> StreamLoader:
        """Return the loader of the training stream, for this process and from the current epoch of `trainer` on."""
        stream = BatchStream(
            len(source),
            self.batch_size,
            batches_per_epoch=self.batches_per_epoch,
            seed=self.seed,
            drop=self.drop or (),
            epoch=_epoch(trainer) if trainer else 0,
            rank=trainer.global_rank if trainer else 0,
            world_size=trainer.world_size if trainer else 1,
        )
        return self._loader(_Batches(source, self.corrupt or ()), stream)

    def validation(self, source: BatchSource, max_batches: int | None = None) -> StreamLoader:
        """Return the loader of the same clean samples every time, spread evenly over the source."""
        count = len(source) if max_batches is None else min(len(source), max_batches * self.batch_size)
        samples = [i * len(source) // count for i in range(count)]
        starts = range(0, count, self.batch_size)
        keys = [BatchKey(n, tuple(samples[start : start + self.batch_size])) for n, start in enumerate(starts)]
        return self._loader(_Batches(source), keys)

    def _loader(self, batches: _Batches, keys: Any) -> StreamLoader:
        # without a generator of its own a DataLoader draws from the global one
        generator = seeded_generator(self.seed, "workers")
        return StreamLoader(batches, sampler=keys, batch_size=None, num_workers=self.num_workers, generator=generator)


def _epoch(trainer: Trainer) -> int:
    # `current_epoch` still names the epoch that is over when a run resumes from its end
    return trainer.fit_loop.epoch_progress.current.processed  # pyright: ignore[reportAttributeAccessIssue]
