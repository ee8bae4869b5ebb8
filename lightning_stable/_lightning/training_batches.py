# SPDX-License-Identifier: Apache-2.0
"""Change the batches that are trained on, before any hook has seen them.

No hook of a callback can replace a batch, and those of modules and data modules are the user's. So the strategy's
`batch_to_device`, through which every batch comes, gets a layer for as long as `undo` is open. Public, but with a role
of its own here: `Trainer.strategy.batch_to_device`, and `Trainer.training`, which is False while a fit validates.
"""

from collections.abc import Callable
from contextlib import ExitStack
from typing import Any

from lightning.pytorch import Trainer

from lightning_stable._lightning.data_fetcher import hands_out_iterators
from lightning_stable._lightning.method_layers import layer_over


def change_training_batches(undo: ExitStack, trainer: Trainer, call: str, change: Callable[[Any], Any]) -> None:
    """Have everybody see `change(batch)` instead of each batch that is trained on, until `undo` is closed.

    The batch is on its device by then, and the user's own transfer hooks have seen it whole. Batches that a guard
    keeps are those of the loader: replayed or run again, they are changed anew, by what `change` does at that step.

    Args:
        undo: Its end is the end of the changes.
        trainer: The trainer in its `fit`.
        call: Who asks, for the error message.
        change: Returns the new batch, and leaves the old one as it is.

    Raises:
        RuntimeError: If `training_step` takes a `dataloader_iter`, and fetches for itself.
    """
    if hands_out_iterators(trainer):
        raise RuntimeError(
            f"`{call}` needs a `training_step` that takes a batch; this one takes a `dataloader_iter`, and fetches for "
            "itself."
        )

    def changed(batch_to_device: Callable[..., Any], batch: Any, *args: Any, **kwargs: Any) -> Any:
        moved = batch_to_device(batch, *args, **kwargs)
        return change(moved) if trainer.training and moved is not None else moved

    layer_over(undo, trainer.strategy, "batch_to_device", changed)
