# SPDX-License-Identifier: Apache-2.0
"""Leave out what Lightning says on every run and nobody can act on: messages by name, never a whole kind.

Loggers by name: those that `rank_zero_info` of `lightning.pytorch` and `lightning.fabric` write to.
"""

import logging
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

_LOGGERS = ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.rank_zero")
_WARNINGS: tuple[tuple[str, type[Warning]], ...] = (
    # Lightning 2.6 calls what torch 2.13 deprecates; a matter between the two.
    (r".*`isinstance\(treespec, LeafSpec\)` is deprecated", FutureWarning),
    # The recipes' batches are made in memory in less time than a worker takes to hand one over.
    (r"The '.*' does not have many workers", UserWarning),
    # Said wherever SLURM is installed; a run of one process needs no `srun`.
    (r"The `srun` command is available on your system but is not used", UserWarning),
)
_MESSAGES = (
    "💡 Tip: For seamless cloud",  # advertises litlogger to whoever logs to something else
    "TPU available: False",  # few have one
    "Loading `train_dataloader` to estimate number of stepping batches",  # how a schedule learns `total_steps`
)


@contextmanager
def quiet() -> Iterator[None]:
    """Within it the messages named above are not shown; every other one is.

    Example:
        >>> with quiet():
        ...     warnings.warn("The 'train_dataloader' does not have many workers.")
    """
    loggers = [logging.getLogger(name) for name in _LOGGERS]
    with warnings.catch_warnings():
        for message, category in _WARNINGS:
            warnings.filterwarnings("ignore", message, category)
        for logger in loggers:
            logger.addFilter(_is_wanted)
        try:
            yield
        finally:
            for logger in loggers:
                logger.removeFilter(_is_wanted)


def _is_wanted(record: logging.LogRecord) -> bool:
    return not record.getMessage().startswith(_MESSAGES)
