# SPDX-License-Identifier: Apache-2.0
"""Show numbers in any progress bar without the cost of `self.log`."""

from collections.abc import Mapping
from typing import Any

from lightning.pytorch import Trainer


def show(trainer: Trainer, texts: Mapping[str, str]) -> None:
    """Put `texts` into the dictionary every Lightning progress bar draws from.

    They are texts because RichProgressBar shows every number with three decimals, which makes 0.000 of a learning rate.
    `loss` is left out where the module shows a training loss by another name.
    """
    metrics: dict[str, Any] = trainer._logger_connector._progress_bar_metrics
    metrics.update(texts)
    if any(name != "loss" and "loss" in name and not name.startswith(("val", "test")) for name in metrics):
        metrics.pop("loss", None)
