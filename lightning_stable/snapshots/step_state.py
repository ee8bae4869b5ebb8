# SPDX-License-Identifier: Apache-2.0
"""Everything but the weights that one training step changes: cheap enough to keep for every step."""

import copy
from collections.abc import Iterable
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint, EarlyStopping, ProgressBar, Timer
from torchmetrics import Metric

from lightning_stable._lightning import progress, results
from lightning_stable._lightning.trainer import callbacks_of
from lightning_stable.snapshots.random_state import RandomState

_OF_THE_MODEL = ("scaler", "schedulers", "groups")  # and buffers and callbacks


class StepState:
    """The state around the weights before a step, to be put back when the step must never have happened.

    Held: buffers (also non-persistent ones), states of torchmetrics, what `self.log` accumulated, random number
    generators, the gradient scaler, schedulers, the optimizers' groups, the counters of steps, the other callbacks'
    state, and whether the trainer was asked to stop. Not held: parameters and optimizer state, which a vetoed step
    never touches (`Snapshot` has them), and the state of checkpoint callbacks, which tell of files on the disk.

    Args:
        trainer: The trainer in its `fit`.
        pl_module: The module it trains.
        guard: The callback this state is kept for; its own state is its own affair.
        with_callbacks: Whether the other callbacks' state is held; not for steps in which none of them is called.

    Example:
        >>> StepState.__name__  # needs a running fit; see `SpikeGuard`
        'StepState'
    """

    def __init__(
        self, trainer: Trainer, pl_module: LightningModule, guard: Callback, with_callbacks: bool = True
    ) -> None:
        self._trainer = trainer
        modules = list(pl_module.modules())
        self._buffers = [(module._buffers, name) for module in modules for name in module._buffers]
        self._metrics = [module for module in modules if isinstance(module, Metric)]
        self._callbacks = [
            callback
            for callback in callbacks_of(trainer)
            if with_callbacks and callback is not guard and _has_state(callback)
        ]
        self._copies: list[torch.Tensor] = []
        self._sources: list[torch.Tensor | None] = []
        self._saved: dict[str, Any] = {}

    @torch.no_grad()
    def capture(self) -> None:
        """Remember the state as it is now."""
        trainer = self._trainer
        self._capture_buffers()
        self._saved = {
            "random": RandomState(),
            "metrics": results.metric_states(self._metrics),
            "logged": results.logged_results(trainer),
            "scaler": trainer.precision_plugin.state_dict(),
            "schedulers": [_copied(config.scheduler.state_dict()) for config in trainer.lr_scheduler_configs],
            "groups": [[_hyperparameters(group) for group in opt.param_groups] for opt in trainer.optimizers],
            "progress": progress.model_progress(trainer),
            "callbacks": [copy.deepcopy(callback.state_dict()) for callback in self._callbacks],
            "should_stop": progress.should_stop(trainer),
        }

    @torch.no_grad()
    def restore(self, count_skipped: bool = False) -> None:
        """Put everything back; with `count_skipped` schedules and step counters run on."""
        trainer, saved = self._trainer, self._saved
        self.restore_buffers()
        saved["random"].restore()
        results.restore_metric_states(self._metrics, saved["metrics"])
        results.restore_logged_results(trainer, saved["logged"])
        self._restore_scaler()
        self._restore_callbacks(self._callbacks)
        trainer.should_stop = saved["should_stop"]
        if count_skipped:
            return
        self._restore_schedules()
        progress.restore_model_progress(trainer, saved["progress"])
        progress.skip_next_plateau_step(trainer)  # those of interval "step" have yet to come

    @torch.no_grad()
    def exchange(self) -> None:
        """Put back what belongs to the model, while the run goes on.

        Random numbers, means over the epoch, counters, whether the trainer was asked to stop, and for how long
        `EarlyStopping` has waited are the run's, and stay as they are.
        """
        self.restore_buffers()
        self._restore_scaler()
        self._restore_callbacks(callback for callback in self._callbacks if not isinstance(callback, EarlyStopping))
        self._restore_schedules()

    def state_dict(self) -> dict[str, Any]:
        """A copy of what `exchange` puts back."""
        copies = iter(self._copies)
        return {
            "buffers": [None if source is None else next(copies).clone() for source in self._sources],
            "callbacks": {
                callback.state_key: copy.deepcopy(state)
                for callback, state in zip(self._callbacks, self._saved["callbacks"], strict=True)
            },
            **{name: _copied(self._saved[name]) for name in _OF_THE_MODEL},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up what `exchange` is to put back.

        Raises:
            ValueError: If it is of another model.
        """
        self._sources = [buffers.get(name) for buffers, name in self._buffers]
        copies = [tensor for tensor in state_dict["buffers"] if tensor is not None]
        sources = [source for source in self._sources if source is not None]
        if [tensor.shape for tensor in copies] != [source.shape for source in sources]:
            raise ValueError("its buffers are not those of the model")
        self._copies = [torch.empty_like(source).copy_(tensor) for source, tensor in zip(sources, copies, strict=True)]
        self._saved = {name: _copied(state_dict[name]) for name in _OF_THE_MODEL}
        self._saved["callbacks"] = [
            copy.deepcopy(state_dict["callbacks"].get(callback.state_key, callback.state_dict()))
            for callback in self._callbacks
        ]

    def _restore_scaler(self) -> None:
        if self._saved["scaler"]:
            self._trainer.precision_plugin.load_state_dict(self._saved["scaler"])

    def _restore_callbacks(self, wanted: Iterable[Callback]) -> None:
        states = dict(zip(self._callbacks, self._saved["callbacks"], strict=True))
        for callback in wanted:
            callback.load_state_dict(copy.deepcopy(states[callback]))

    def _restore_schedules(self) -> None:
        trainer, saved = self._trainer, self._saved
        for config, state in zip(trainer.lr_scheduler_configs, saved["schedulers"], strict=True):
            config.scheduler.load_state_dict(_copied(state))
        for optimizer, groups in zip(trainer.optimizers, saved["groups"], strict=True):
            _restore_groups(optimizer.param_groups, groups)

    def wait(self) -> None:
        """Nothing is copied beside the computation here."""

    @property
    def random(self) -> RandomState:
        """The random number generators as they were captured."""
        return self._saved["random"]

    def _capture_buffers(self) -> None:
        sources = [buffers.get(name) for buffers, name in self._buffers]
        if not _same_layout(sources, self._sources):
            self._copies = [torch.empty_like(source) for source in sources if source is not None]
        self._sources = sources
        tensors = [source for source in sources if source is not None]
        if tensors:
            torch._foreach_copy_(self._copies, tensors)

    @torch.no_grad()
    def restore_buffers(self) -> None:
        """Put back the buffers alone."""
        copies = iter(self._copies)
        for (buffers, name), source in zip(self._buffers, self._sources, strict=True):
            if source is not None:
                source.copy_(next(copies))
            buffers[name] = source  # a module may have bound a new tensor to the name


def _has_state(callback: Callback) -> bool:
    keeps_state = type(callback).state_dict is not Callback.state_dict
    return keeps_state and not isinstance(callback, Checkpoint | ProgressBar | Timer)


def _same_layout(new: list[torch.Tensor | None], old: list[torch.Tensor | None]) -> bool:
    return len(new) == len(old) and all(
        a is b
        or (a is not None and b is not None and a.shape == b.shape and a.dtype == b.dtype and a.device == b.device)
        for a, b in zip(new, old, strict=True)
    )


def _copied(value: Any) -> Any:
    """A copy of nested containers and tensors; anything else is shared."""
    if isinstance(value, dict):
        return {key: _copied(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_copied(item) for item in value]
    return value.clone() if isinstance(value, torch.Tensor) else value


def _hyperparameters(group: dict[str, Any]) -> dict[str, Any]:
    return {key: _copied(value) for key, value in group.items() if key != "params"}


def _restore_groups(groups: list[dict[str, Any]], saved: list[dict[str, Any]]) -> None:
    for group, values in zip(groups, saved, strict=True):
        for key in group.keys() - values.keys() - {"params"}:
            del group[key]  # some optimizers add a counter in their first step
        for key, value in values.items():
            if isinstance(value, torch.Tensor) and isinstance(group.get(key), torch.Tensor):
                group[key].copy_(value)  # capturable optimizers hold on to the tensor itself
            else:
                group[key] = _copied(value)
