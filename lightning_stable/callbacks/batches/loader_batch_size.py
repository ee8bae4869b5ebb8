# SPDX-License-Identifier: Apache-2.0
"""The attribute `batch_size` that a loader is made from, changed for a run and put back."""

from collections.abc import MutableMapping
from typing import Any

from lightning.pytorch import LightningModule, Trainer

_NAME = "batch_size"


class LoaderBatchSize:
    """`batch_size` of module, data module and the `hparams` of both, wherever there is one.

    All of them are set, as nobody knows which one `train_dataloader` reads; each gets back what it had.

    Args:
        trainer: The trainer in its `fit`.
        pl_module: The module it trains.

    Raises:
        RuntimeError: If what the loader is made from is no whole number.

    Example:
        >>> module = LightningModule()
        >>> module.batch_size = 4
        >>> size = LoaderBatchSize(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False), module)
        >>> size.set(8)
        >>> size.first, module.batch_size
        (4, 8)
        >>> size.restore()
        >>> module.batch_size
        4
    """

    def __init__(self, trainer: Trainer, pl_module: LightningModule) -> None:
        owners = [pl_module, getattr(trainer, "datamodule", None)]
        self._holders = [holder for owner in owners if owner is not None for holder in _holders(owner)]
        self._own: list[Any] = [_get(holder) for holder in self._holders]
        if not isinstance(self.first, int) or self.first < 1:
            raise RuntimeError(f"`AdaptiveBatchSize` needs a `batch_size` that is a whole number, got {self.first!r}.")

    @property
    def first(self) -> Any:
        """What the loader is made from before anything is set: the data module's, if it has one."""
        return self._own[-1] if self._own else None

    def set(self, size: int) -> None:
        """Let the next loader be made from `size`."""
        for holder in self._holders:
            _set(holder, size)

    def resume(self, first: int, times: int) -> None:
        """Go on with a loader that was `times` as large as the `first` one.

        `hparams` that were loaded from the checkpoint have the size that it was saved with, and get back the first.

        Raises:
            RuntimeError: If the run began with another size.
        """
        self._own = [first if size == first * times else size for size in self._own]
        if self.first != first:
            raise RuntimeError(
                f"The checkpoint of `AdaptiveBatchSize` is of a run that began with `batch_size` {first}, but now it "
                f"is {self.first}. Resume with what the run began with: growth is counted from there."
            )
        if times > 1:
            self.set(first * times)

    def restore(self) -> None:
        """Give each holder back what it had."""
        for holder, size in zip(self._holders, self._own, strict=True):
            _set(holder, size)


def _holders(owner: Any) -> list[Any]:
    """A module or data module and its `hparams`, as far as they have the attribute."""
    hparams = getattr(owner, "hparams", {})
    return [*([owner] if hasattr(owner, _NAME) else []), *([hparams] if _NAME in hparams else [])]


def _get(holder: Any) -> Any:
    return holder[_NAME] if isinstance(holder, MutableMapping) else getattr(holder, _NAME)


def _set(holder: Any, size: Any) -> None:
    if isinstance(holder, MutableMapping):
        holder[_NAME] = size
    else:
        setattr(holder, _NAME, size)
