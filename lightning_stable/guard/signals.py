# SPDX-License-Identifier: Apache-2.0
"""What the guard watches: the numbers of a step, and the detectors that judge them."""

import copy
import math
import statistics
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_stable._lightning.results import latest_logged
from lightning_stable.detectors import Detector, NonFinite, Verdict

LOSS, LARGEST_LOSS, GRAD_NORM = "loss", "largest_loss", "grad_norm"
UPDATE_NORM = "update_norm"
_ALWAYS_THERE = (LOSS, LARGEST_LOSS, GRAD_NORM, UPDATE_NORM)
_TYPICAL_OF = 64  # accepted steps whose gradient norms tell what is typical
_PATIENCE_STEPS = 1000  # a watched key may be logged rarely; after that many steps somebody has mistyped it


@dataclass(frozen=True)
class Anomaly:
    """The signal that gave a spike away.

    Example:
        >>> Anomaly("loss", 9.0, Verdict(is_anomaly=True, score=12.0, threshold=3.0)).signal
        'loss'
    """

    signal: str
    value: float
    verdict: Verdict
    detector: str = ""  # its class


@dataclass(frozen=True)
class GradientReading:
    """The gradients that an optimizer is about to use.

    Example:
        >>> parameter = torch.nn.Parameter(torch.zeros(2))
        >>> parameter.grad = torch.tensor([3.0, 4.0])
        >>> read = GradientReading(torch.optim.SGD([parameter], lr=0.1), norm=5.0, typical=2.5, is_finite=True)
        >>> read.is_too_large, read.shrink(), parameter.grad.tolist()
        (True, 0.5, [1.5, 2.0])
    """

    optimizer: Optimizer
    norm: float
    typical: float | None  # what the norm has been of late
    is_finite: bool  # loss and gradients

    @property
    def is_too_large(self) -> bool:
        """Whether they can be shrunk to a norm that is known to be typical."""
        return self.is_finite and self.typical is not None and 0 < self.typical < self.norm

    @torch.no_grad()
    def shrink(self) -> float:
        """Scale the gradients in place to the typical norm, and return by how much."""
        assert self.typical is not None
        ratio = self.typical / self.norm
        for group in self.optimizer.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    parameter.grad.mul_(ratio)
        return ratio


class Signals:
    """Judges every watched signal; a step's values are remembered only if all of them are healthy.

    With several optimizers each has detectors of its own: `loss` and `grad_norm` for the first, `loss/1` and
    `grad_norm/1` for the second. With several ranks `loss` is their mean, and the largest of theirs, `largest_loss`, is
    judged by a detector like that of `loss`, unless it has one in `watch`.

    Args:
        watch: From signal to detector. `loss` and `grad_norm` are always there and always judged for finiteness; any
            other name is a key that is logged with `self.log` or by a monitor.
        warn: The same, of detectors whose alarm is no spike: they are asked once the step is healthy.

    Raises:
        TypeError: If `watch` or `warn` maps to something that is not a detector.

    Example:
        >>> signals = Signals({})
        >>> signals.judge({"loss": float("nan")}).signal
        'loss'
    """

    def __init__(self, watch: Mapping[str, Detector], warn: Mapping[str, Detector] | None = None) -> None:
        self._watch, self._warn = dict(watch), dict(warn or {})
        finite = {key: NonFinite() for key in _ALWAYS_THERE}
        largest = {LARGEST_LOSS: watch[LOSS]} if LOSS in watch else {}
        self._watched = _Detectors("watch", {**finite, **largest, **watch})
        self._warned = _Detectors("warn", self._warn)
        self._alarmed: set[str] = set()  # those of which was warned, and which have not come down since
        self._norms: dict[str, deque[float]] = {}
        self._last_seen: dict[str, Any] = {}
        self._never_logged = set(self.logged_keys)
        self._steps = 0

    @property
    def logged_keys(self) -> list[str]:
        """The watched keys that somebody has to log."""
        return [key for key in {**self._watch, **self._warn} if key not in _ALWAYS_THERE]

    @property
    def watches_updates(self) -> bool:
        """Whether what a step has moved the weights by is watched; it is known when the step is taken."""
        return UPDATE_NORM in self._watch

    def read_logged(self, trainer: Trainer) -> dict[str, float]:
        """The watched keys that were logged since the last call."""
        readings = {}
        self._steps += 1
        for key in self.logged_keys:
            value = latest_logged(trainer, key)
            if value is None or value is self._last_seen.get(key):
                continue
            self._last_seen[key] = value
            self._never_logged.discard(key)
            readings[key] = float(value)
        if self._steps == _PATIENCE_STEPS:
            self.warn_of_keys_never_logged()
        return readings

    def forget_undone(self, trainer: Trainer) -> None:
        """A step was undone, and what the step before it logged is the latest again; it has been read."""
        self._last_seen.update({key: latest_logged(trainer, key) for key in self.logged_keys})

    def warn_of_keys_never_logged(self) -> None:
        """Name, once, the watched keys nobody has logged so far."""
        for key in sorted(self._never_logged):
            argument = "watch" if key in self._watch else "warn"
            rank_zero_warn(
                f"`SpikeGuard({argument}={{{key!r}: ...}})` watches a key that has not been logged so far, so it guards"
                f" nothing. Log it with `self.log({key!r}, ...)` in `training_step`, or correct its name."
            )
        self._never_logged.clear()

    def judge(self, readings: Mapping[str, float]) -> Anomaly | None:
        """The worst of the anomalies among `readings`, if there is any. Nothing is remembered."""
        anomalies = []
        for key, value, detector in self._watched.of(readings):
            verdict = detector.judge(value)
            if not verdict.is_anomaly and not math.isfinite(value):
                verdict = NonFinite().judge(value)
            if verdict.is_anomaly:
                anomalies.append(Anomaly(key, value, verdict, type(detector).__name__))
        return max(anomalies, key=lambda anomaly: anomaly.verdict.score, default=None)

    def accept(self, readings: Mapping[str, float]) -> list[Anomaly]:
        """Remember the readings of a healthy step, and return those of which people are to be warned.

        An alarm that lasts is returned once, where it begins.
        """
        for key, value, detector in self._watched.of(readings):
            detector.accept(value)
            if key == GRAD_NORM or key.startswith(f"{GRAD_NORM}/"):
                self._norms.setdefault(key, deque(maxlen=_TYPICAL_OF)).append(value)
        begun = []
        for key, value, detector in self._warned.of(readings):
            verdict = detector.update(value)
            if verdict.is_anomaly and key not in self._alarmed:
                begun.append(Anomaly(key, value, verdict, type(detector).__name__))
            (self._alarmed.add if verdict.is_anomaly else self._alarmed.discard)(key)
        return begun

    def reject(self, readings: Mapping[str, float]) -> None:
        """Tell the detectors that called a reading an anomaly; too many of them may be a new level."""
        for _, value, detector in self._watched.of(readings):
            if detector.judge(value).is_anomaly:
                detector.reject(value)

    def typical(self, key: str) -> float | None:
        """The median of the gradient norms accepted lately, else the largest that would pass; `None` if unknown."""
        if self._norms.get(key):
            return statistics.median(self._norms[key])
        for _, infinite, detector in self._watched.of({key: math.inf}):
            threshold = detector.judge(infinite).threshold
            return threshold if math.isfinite(threshold) else None
        return None

    def state_dict(self) -> dict[str, Any]:
        """The state of every detector that has judged something, and the gradient norms of late."""
        return {
            **self._watched.state_dict(),
            "norms": {key: list(norms) for key, norms in self._norms.items()},
            "warnings": {**self._warned.state_dict(), "alarmed": sorted(self._alarmed)},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`; detectors it does not know, or that are of another kind now, start afresh."""
        self._watched.load_state_dict(state_dict)
        self._warned.load_state_dict(state_dict["warnings"])
        self._alarmed = set(state_dict["warnings"]["alarmed"])
        self._norms = {key: deque(norms, maxlen=_TYPICAL_OF) for key, norms in state_dict["norms"].items()}


class _Detectors:
    """Detectors by signal, each with a history of its own that begins with its first value; the given are copied."""

    def __init__(self, argument: str, given: Mapping[str, Detector]) -> None:
        for key, detector in given.items():
            if not isinstance(detector, Detector):
                raise TypeError(f"`SpikeGuard({argument}=...)`: {key!r} must map to a detector, got {detector!r}.")
        self._argument = argument
        self._given = dict(given)
        self._own: dict[str, Detector] = {}

    def of(self, readings: Mapping[str, float]) -> list[tuple[str, float, Detector]]:
        """Those of `readings` that there is a detector for, with it."""
        found = ((key, value, self._find(key)) for key, value in readings.items())
        return [(key, value, detector) for key, value, detector in found if detector is not None]

    def state_dict(self) -> dict[str, Any]:
        """The state of every detector that has seen something."""
        return {
            "detectors": {key: detector.state_dict() for key, detector in self._own.items()},
            "kinds": {key: type(detector).__name__ for key, detector in self._own.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`, less what is of no use any more."""
        self._own = {}
        for key, state in state_dict["detectors"].items():
            detector = self._find(key)
            if detector is None:  # no longer asked for
                continue
            kind, known = type(detector).__name__, state_dict["kinds"][key]
            if kind == known:
                detector.load_state_dict(state)
            else:
                rank_zero_warn(
                    f"`SpikeGuard({self._argument}={{{key!r}: {kind}(...)}})` was a `{known}` when the checkpoint was"
                    " written: its history cannot be taken over, and begins anew."
                )

    def _find(self, key: str) -> Detector | None:
        if key not in self._own:
            first, _, optimizer = key.rpartition("/")  # `loss/1` is that of the second optimizer
            name = first if key not in self._given and first in _ALWAYS_THERE and optimizer.isdigit() else key
            if name not in self._given:
                return None
            self._own[key] = copy.deepcopy(self._given[name])
        return self._own[key]
