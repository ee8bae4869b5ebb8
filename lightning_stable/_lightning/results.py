# SPDX-License-Identifier: Apache-2.0
"""What `self.log` has accumulated over the epoch, and the states of torchmetrics."""

from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Trainer
from torchmetrics import Metric

_RESULT_FIELDS = ("value", "cumulated_batch_size", "_forward_cache", "_computed", "_update_count", "has_reset")
_METRIC_FIELDS = ("_forward_cache", "_computed", "_update_count")

LoggedResults = dict[str, dict[str, Any]]
MetricStates = list[dict[str, Any]]


def logged_results(trainer: Trainer) -> LoggedResults:
    """The accumulators behind `self.log`. References will do: Lightning binds new tensors, it changes none in place."""
    results = trainer.fit_loop.epoch_loop._results
    return {
        key: {name: vars(metric)[name] for name in _RESULT_FIELDS if name in vars(metric)}
        for key, metric in results.items()
    }


def restore_logged_results(trainer: Trainer, saved: LoggedResults) -> None:
    """Put the accumulators back; keys that were born since then are forgotten."""
    results = trainer.fit_loop.epoch_loop._results
    for key in list(results):
        if key in saved:
            vars(results[key]).update(saved[key])
        else:
            del results[key]


def metric_states(metrics: Iterable[Metric]) -> MetricStates:
    """Copies of the states of `metrics`; torchmetrics changes them in place."""
    return [
        {name: _copy(getattr(metric, name)) for name in (*metric._defaults, *_METRIC_FIELDS) if hasattr(metric, name)}
        for metric in metrics
    ]


def restore_metric_states(metrics: Iterable[Metric], saved: MetricStates) -> None:
    """Put the states of `metrics` back."""
    for metric, states in zip(metrics, saved, strict=True):
        for name, value in states.items():
            object.__setattr__(metric, name, _copy(value))


def latest_logged(trainer: Trainer, key: str) -> Any:
    """The value last logged under `key` in training, as it was passed or accumulated; `None` if it never was.

    What an epoch has logged is forgotten with its means: nothing of it is the first step's of the next one.
    """
    metrics = [metric for metric in trainer.fit_loop.epoch_loop._results.values() if metric.meta.name == key]
    for metric in metrics:
        if not metric.has_reset:
            return metric._forward_cache if metric.meta.on_step else metric.value
    return None if metrics else trainer._logger_connector._callback_metrics.get(key)


class LoggedOnStep:
    """Hands out what is logged under `key` in training with `on_step=True`, each value once.

    Lightning keeps a value until the next one is logged, or the epoch ends.

    Args:
        trainer: The trainer in its `fit`; what has been logged by now is not handed out.
        key: Of `self.log`.
    """

    def __init__(self, trainer: Trainer, key: str) -> None:
        self._trainer = trainer
        self._key = key
        self._last = self._latest()

    @property
    def is_known(self) -> bool:
        """Whether there ever was a value."""
        return bool(self._kept())

    def take(self) -> torch.Tensor | None:
        """The value that was logged since the last call, if there is one."""
        before, self._last = self._last, self._latest()
        return None if self._last is before else self._last  # every call of `self.log` makes a tensor of its own

    def _latest(self) -> torch.Tensor | None:
        return next((value for value in self._kept() if isinstance(value, torch.Tensor)), None)

    def _kept(self) -> list[Any]:
        metrics = self._trainer.fit_loop.epoch_loop._results.values()
        return [metric._forward_cache for metric in metrics if metric.meta.name == self._key and metric.meta.on_step]


def _copy(value: Any) -> Any:
    if isinstance(value, torch.Tensor):
        return value.clone()
    return list(value) if isinstance(value, list) else value
