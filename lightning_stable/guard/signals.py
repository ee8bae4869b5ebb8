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

    Raises:
        TypeError: If `watch` maps to something that is not a detector.

    Example:
        >>> signals = Signals({})
        >>> signals.judge({"loss": float("nan")}).signal
        'loss'
    """

    def __init__(self, watch: Mapping[str, Detector]) -> None:
        for key, detector in watch.items():
            if not isinstance(detector, Detector):
                raise TypeError(f"`SpikeGuard(watch=...)`: {key!r} must map to a detector, got {detector!r}.")
        self._watch = dict(watch)
        self._detectors: dict[str, Detector] = {}
        self._norms: dict[str, deque[float]] = {}
        self._last_seen: dict[str, Any] = {}
        self._never_logged = {key for key in watch if key not in _ALWAYS_THERE}
        self._steps = 0

    @property
    def logged_keys(self) -> list[str]:
        """The watched keys that somebody has to log."""
        return [key for key in self._watch if key not in _ALWAYS_THERE]

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

    def warn_of_keys_never_logged(self) -> None:
        """Name, once, the watched keys nobody has logged so far."""
        for key in sorted(self._never_logged):
            rank_zero_warn(
                f"`SpikeGuard(watch={{{key!r}: ...}})` watches a key that has not been logged so far, so it guards"
                f" nothing. Log it with `self.log({key!r}, ...)` in `training_step`, or correct its name."
            )
        self._never_logged.clear()

    def judge(self, readings: Mapping[str, float]) -> Anomaly | None:
        """The worst of the anomalies among `readings`, if there is any. Nothing is remembered."""
        anomalies = []
        for key, value in readings.items():
            verdict = self._detector(key).judge(value)
            if not verdict.is_anomaly and not math.isfinite(value):
                verdict = NonFinite().judge(value)
            if verdict.is_anomaly:
                anomalies.append(Anomaly(key, value, verdict))
        return max(anomalies, key=lambda anomaly: anomaly.verdict.score, default=None)

    def accept(self, readings: Mapping[str, float]) -> None:
        """Remember the readings of a healthy step."""
        for key, value in readings.items():
            self._detector(key).accept(value)
            if key == GRAD_NORM or key.startswith(f"{GRAD_NORM}/"):
                self._norms.setdefault(key, deque(maxlen=_TYPICAL_OF)).append(value)

    def reject(self, readings: Mapping[str, float]) -> None:
        """Tell the detectors that called a reading an anomaly; too many of them may be a new level."""
        for key, value in readings.items():
            detector = self._detector(key)
            if detector.judge(value).is_anomaly:
                detector.reject(value)

    def typical(self, key: str) -> float | None:
        """The median of the gradient norms accepted lately, else the largest that would pass; `None` if unknown."""
        if self._norms.get(key):
            return statistics.median(self._norms[key])
        threshold = self._detector(key).judge(math.inf).threshold
        return threshold if math.isfinite(threshold) else None

    def state_dict(self) -> dict[str, Any]:
        """The state of every detector that has judged something, and the gradient norms of late."""
        return {
            "detectors": {key: detector.state_dict() for key, detector in self._detectors.items()},
            "kinds": {key: type(detector).__name__ for key, detector in self._detectors.items()},
            "norms": {key: list(norms) for key, norms in self._norms.items()},
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`; detectors it does not know, or that are of another kind now, start afresh."""
        self._detectors = {}
        for key, state in state_dict["detectors"].items():
            kind, known = type(self._detector(key)).__name__, state_dict["kinds"][key]
            if kind == known:
                self._detector(key).load_state_dict(state)
            else:
                rank_zero_warn(
                    f"`SpikeGuard(watch={{{key!r}: {kind}(...)}})` was a `{known}` when the checkpoint was written: its"
                    " history cannot be taken over, and begins anew."
                )
        self._norms = {key: deque(norms, maxlen=_TYPICAL_OF) for key, norms in state_dict["norms"].items()}

    def _detector(self, key: str) -> Detector:
        if key not in self._detectors:
            name = key if key in self._watch else key.rsplit("/", 1)[0]
            if name == LARGEST_LOSS and name not in self._watch:
                name = LOSS
            self._detectors[key] = copy.deepcopy(self._watch.get(name, NonFinite()))
        return self._detectors[key]
