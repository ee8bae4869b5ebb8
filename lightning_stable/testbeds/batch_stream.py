# SPDX-License-Identifier: Apache-2.0
"""The order of the training batches: a function of seed and epoch, with a number for every batch of the whole run."""

import math
from collections.abc import Iterable, Iterator
from typing import NamedTuple

import torch
from torch.utils.data import DistributedSampler

from lightning_stable.testbeds.seeding import seeded_generator


class BatchKey(NamedTuple):
    """One batch: its index in the whole training stream and the samples it holds.

    Example:
        >>> BatchKey(batch=7, samples=(3, 1))
        BatchKey(batch=7, samples=(3, 1))
    """

    batch: int
    samples: tuple[int, ...]


class BatchStream(DistributedSampler[BatchKey]):
    """Sample whole batches, so that a worker knows which batch of the run it is reading.

        epoch e is a permutation of the samples drawn from (seed, e), cut into batches of `batch_size`;
        batch b of epoch e has the index e * batches_per_epoch + b; rank r of w takes every w-th batch, from the r-th on

    Dropped batches are not handed out, and all others keep their index and their content. An epoch that needs more
    samples than there are goes on with a second permutation.
    Lightning leaves a `DistributedSampler` alone, hence the parent class.

    Args:
        n_samples: How many samples there are.
        batch_size: Samples a batch.
        batches_per_epoch: Batches an epoch before any is dropped; by default what the samples give.
        seed: Decides the order.
        drop: Indices of the batches that are left out.
        epoch: The epoch that comes first.
        rank: Which process this is.
        world_size: How many processes share the batches.

    Raises:
        ValueError: If no batch is left.

    Example:
        >>> stream = BatchStream(n_samples=6, batch_size=2, drop=[1])
        >>> [key.batch for key in stream]
        [0, 2]
        >>> [len(key.samples) for key in stream]
        [2, 2]
    """

    def __init__(
        self,
        n_samples: int,
        batch_size: int,
        *,
        batches_per_epoch: int | None = None,
        seed: int = 0,
        drop: Iterable[int] = (),
        epoch: int = 0,
        rank: int = 0,
        world_size: int = 1,
    ) -> None:
        # the parent asks for the length of the data set only
        super().__init__(range(n_samples), world_size, rank, seed=seed)  # pyright: ignore[reportArgumentType]
        self.n_samples = n_samples
        self.batch_size = batch_size
        self.batches_per_epoch = n_samples // batch_size if batches_per_epoch is None else batches_per_epoch
        self.drop = frozenset(drop)
        self.epoch = epoch
        self.position = 0
        self._start = 0
        self._length = len(self._kept(epoch))
        if self._length == 0:
            raise ValueError(
                f"Epoch {epoch} has no batch: of {self.batches_per_epoch} batches of {batch_size} samples, "
                f"{len(self._in_epoch(epoch))} are not dropped, for {world_size} process(es). "
                "Lower `batch_size` or drop fewer."
            )

    def __len__(self) -> int:
        return self._length

    def __iter__(self) -> Iterator[BatchKey]:
        self.position, self._start = self._start, 0
        samples = self._samples()
        for index in self._kept(self.epoch)[self.position :]:
            first = (index % self.batches_per_epoch) * self.batch_size
            yield BatchKey(index, tuple(samples[first : first + self.batch_size].tolist()))

    def set_epoch(self, epoch: int) -> None:
        """Go to the beginning of `epoch`; no change if that epoch is the current one.

        Args:
            epoch: Counted from zero.

        Raises:
            RuntimeError: If `drop` gives this epoch another length than the loader promised when it was made.

        Example:
            >>> stream = BatchStream(n_samples=6, batch_size=2)
            >>> stream.set_epoch(2)
            >>> [key.batch for key in stream]
            [6, 7, 8]
        """
        if epoch == self.epoch:
            return
        length = len(self._kept(epoch))
        if length != self._length:
            raise RuntimeError(
                f"`drop` leaves {length} batches in epoch {epoch}, but the loader was made for {self._length}. "
                "Use `Trainer(reload_dataloaders_every_n_epochs=1)`."
            )
        self.epoch, self.position, self._start = epoch, 0, 0

    def state_dict(self) -> dict[str, int]:
        """Return the epoch and how many of its batches were handed on.

        Example:
            >>> BatchStream(n_samples=6, batch_size=2).state_dict()
            {'epoch': 0, 'position': 0}
        """
        return {"epoch": self.epoch, "position": self.position}

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Let the next iteration begin where `state_dict` was taken.

        Example:
            >>> stream = BatchStream(n_samples=6, batch_size=2)
            >>> stream.load_state_dict({"epoch": 1, "position": 2})
            >>> [key.batch for key in stream]
            [5]
        """
        self.set_epoch(state_dict["epoch"])
        self.position = self._start = state_dict["position"]

    def _in_epoch(self, epoch: int) -> list[int]:
        first = epoch * self.batches_per_epoch
        return [index for index in range(first, first + self.batches_per_epoch) if index not in self.drop]

    def _kept(self, epoch: int) -> list[int]:
        kept = self._in_epoch(epoch)
        together = len(kept) // self.num_replicas * self.num_replicas  # every process gets as many
        return kept[self.rank : together : self.num_replicas]

    def _samples(self) -> torch.Tensor:
        generator = seeded_generator(self.seed, "epoch", self.epoch)
        passes = math.ceil(self.batches_per_epoch * self.batch_size / self.n_samples)
        return torch.cat([torch.randperm(self.n_samples, generator=generator) for _ in range(passes)])
