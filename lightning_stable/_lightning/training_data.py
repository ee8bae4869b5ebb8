# SPDX-License-Identifier: Apache-2.0
"""A second set of the training loaders, to be read without the first one noticing.

Private attributes: `_combined_loader` of the fit loop, which Lightning has put its distributed samplers into; `_mode`
of a `CombinedLoader`; `_iterator` of a torch `DataLoader` that keeps its workers, and of a `StatefulDataLoader`.
"""

import copy
from collections.abc import Iterator
from types import FunctionType, ModuleType
from typing import Any

import numpy as np
import torch
from lightning.fabric.utilities.data import sized_len
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import CombinedLoader, rank_zero_warn
from torch.utils.data import IterableDataset

LARGE = 64 * 2**20  # bytes from which on an array of a data set is shared and not copied


class TrainingDataCopy:
    """Reads batches as the training loop does, from copies of the loaders, and as often as one likes.

    Samplers, generators and data sets are copied as they are now; arrays and tensors of 64 MiB or more among them are
    shared. Of a data set with `__getitem__` that cannot be copied the one itself is read, with a warning.

    Args:
        trainer: In its `fit`, after the training loaders were made.
        asked_by: What an error says cannot work.

    Raises:
        ValueError: If a loader that keeps its own position cannot be copied.
    """

    def __init__(self, trainer: Trainer, asked_by: str) -> None:
        combined_loader = trainer.fit_loop._combined_loader
        assert combined_loader is not None
        self._asked_by = asked_by
        # what a `collate_fn` or a data set may belong to
        owners = [trainer, trainer.lightning_module, getattr(trainer, "datamodule", None)]
        self._shared = {id(owner): owner for owner in owners if owner is not None}
        self._pristine = self._copied(combined_loader)

    def from_the_beginning(self) -> Iterator[Any]:
        """Batches without end: when the loaders are used up, they are read again.

        The loaders' workers end when the iterator is closed, or is let go.
        """
        loader = self._copied(self._pristine)
        try:
            while True:
                iterator = iter(loader)
                count, length = 0, sized_len(loader)
                while length is None or count < length:
                    try:
                        batch, _, _ = next(iterator)
                    except StopIteration:
                        break
                    count += 1
                    yield batch
                if count == 0:
                    raise ValueError(f"{self._asked_by} needs training data, and the training loader gives no batch.")
        finally:
            loader.reset()

    def _copied(self, combined_loader: CombinedLoader) -> CombinedLoader:
        memo: dict[int, Any] = dict(self._shared)
        mode: Any = combined_loader._mode
        new = CombinedLoader(combined_loader.iterables, mode)
        new.flattened = [self._copy_of(loader, memo) for loader in combined_loader.flattened]
        new.limits = combined_loader.limits
        return new

    def _copy_of(self, loader: Any, memo: dict[int, Any]) -> Any:
        iterator = _take_iterator(loader)
        try:
            dataset = getattr(loader, "dataset", None)
            _share_what_is_large(dataset if dataset is not None else loader, memo)
            if (context := getattr(loader, "multiprocessing_context", None)) is not None:
                memo[id(context)] = context
            self._copy_dataset(dataset, memo)
            return copy.deepcopy(loader, memo)
        except Exception as error:  # whatever somebody else's class raises when it is copied
            raise ValueError(
                f"{self._asked_by} reads from a copy of the training data, so that the run finds its own where it was,"
                f" and a `{type(getattr(loader, 'dataset', None) or loader).__name__}` cannot be copied"
                f" ({type(error).__name__}: {error}). Open files, connections and generators in its `__iter__`, or give"
                " it a `__deepcopy__`."
            ) from error
        finally:
            if iterator is not None:
                loader._iterator = iterator

    def _copy_dataset(self, dataset: Any, memo: dict[int, Any]) -> None:
        """Copy a data set into `memo`, or share it if a sample is found by its index alone."""
        if dataset is None or id(dataset) in memo:
            return
        mine = dict(memo)
        try:
            copy.deepcopy(dataset, mine)
        except Exception as error:
            if isinstance(dataset, IterableDataset) or not hasattr(dataset, "__getitem__"):
                raise
            self._shared[id(dataset)] = memo[id(dataset)] = dataset
            rank_zero_warn(
                f"{self._asked_by} cannot copy the `{type(dataset).__name__}` ({type(error).__name__}: {error}), and"
                " reads from the one of the run. If it counts, or draws from a generator of its own, the run will"
                " notice; give it a `__deepcopy__` then."
            )
        else:
            memo.update(mine)


def _take_iterator(loader: Any) -> Any:
    """Take a live iterator, with its processes and queues, off its loader."""
    iterator = vars(loader).get("_iterator") if hasattr(loader, "__dict__") else None
    if iterator is not None:
        loader._iterator = None
    return iterator


def _share_what_is_large(owner: Any, memo: dict[int, Any]) -> None:
    """Note large arrays within `owner` as their own copies."""
    waiting, seen = [owner], set()
    while waiting:
        value = waiting.pop()
        if id(value) in seen or id(value) in memo:
            continue
        seen.add(id(value))
        if isinstance(value, torch.Tensor | np.ndarray):
            if value.nbytes >= LARGE:
                memo[id(value)] = value
        elif isinstance(value, dict):
            waiting.extend(value.values())
        elif isinstance(value, list | tuple):
            waiting.extend(value)
        elif hasattr(value, "__dict__") and not isinstance(value, type | ModuleType | FunctionType):
            waiting.extend(vars(value).values())
