# SPDX-License-Identifier: Apache-2.0
"""Send scalars, text, figures and histograms to whatever loggers a Trainer has, at once.

`self.log` is flushed only every `log_every_n_steps` steps; an event must not wait for that.
The x axis is `_batches_that_stepped`, as in Lightning: it never goes back, also when the guard goes back.
"""

from collections.abc import Mapping
from typing import Any

import torch
from lightning.pytorch import Trainer

Scalar = float | int | torch.Tensor


def logging_step(trainer: Trainer) -> int:
    """The x-axis value Lightning itself would log at now: optimizer steps ever tried, monotonic."""
    return trainer.fit_loop.epoch_loop._batches_that_stepped


def log_scalars(trainer: Trainer, scalars: Mapping[str, Scalar]) -> None:
    """Send scalars to every logger now and make them visible in `trainer.callback_metrics`."""
    trainer._logger_connector._callback_metrics.update({key: _metric(value) for key, value in scalars.items()})
    numbers = {key: value.item() if isinstance(value, torch.Tensor) else value for key, value in scalars.items()}
    step = logging_step(trainer)
    for logger in trainer.loggers:
        logger.log_metrics(numbers, step=step)


def log_text(trainer: Trainer, tag: str, text: str) -> None:
    """Send Markdown text to the loggers that can show it."""
    for experiment in _experiments(trainer, "add_text"):
        experiment.add_text(tag, text, global_step=logging_step(trainer))


def log_histogram(trainer: Trainer, tag: str, values: torch.Tensor) -> None:
    """Send the distribution of the finite ones of `values` to the loggers that can show it; none for none."""
    finite = values.detach().float()
    finite = finite[finite.isfinite()]
    for experiment in _experiments(trainer, "add_histogram") if finite.numel() else ():
        experiment.add_histogram(tag, finite, global_step=logging_step(trainer))


def log_figure(trainer: Trainer, tag: str, figure: Any) -> None:
    """Send a matplotlib figure to the loggers that can show it."""
    for experiment in _experiments(trainer, "add_figure"):
        experiment.add_figure(tag, figure, global_step=logging_step(trainer), close=False)


def can_show(trainer: Trainer, kind: str) -> bool:
    """Whether any logger can show `kind`: `text`, `histogram` or `figure`."""
    return bool(_experiments(trainer, f"add_{kind}"))


def _metric(value: Scalar) -> torch.Tensor:
    """A tensor of its own, without a graph, as `self.log` makes it."""
    if isinstance(value, torch.Tensor):
        return value.detach().float().clone()
    return torch.tensor(value, dtype=torch.float32)


def _experiments(trainer: Trainer, method: str) -> list[Any]:
    if not trainer.is_global_zero:
        return []
    experiments = [getattr(logger, "experiment", None) for logger in trainer.loggers]
    return [experiment for experiment in experiments if callable(getattr(experiment, method, None))]
