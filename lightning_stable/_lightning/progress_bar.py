# SPDX-License-Identifier: Apache-2.0
"""Show numbers in any progress bar without the cost of `self.log`."""

from collections.abc import Mapping

from lightning.pytorch import Trainer


def show(trainer: Trainer, numbers: Mapping[str, float]) -> None:
    """Put `numbers` into the dictionary every Lightning progress bar draws from."""
    trainer._logger_connector._progress_bar_metrics.update(numbers)
