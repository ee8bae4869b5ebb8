# SPDX-License-Identifier: Apache-2.0
"""Whether a resumed run goes on where it was: its optimizer's state, its loss, and the size of its first steps."""

import math
import statistics
from collections import deque
from typing import Any

import torch
import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch.optim import Optimizer

from lightning_stable._lightning.ranks import of_all_ranks
from lightning_stable.detectors import Verdict
from lightning_stable.functional.tensor_norms import local
from lightning_stable.guard.recovery import Recovery
from lightning_stable.guard.rollback import RestartOptimizer, ReturnToLoaded
from lightning_stable.guard.signals import LOSS, Anomaly
from lightning_stable.guard.window import Window
from lightning_stable.optim.moments import FIRST_MOMENTS, SECOND_MOMENTS

MAX_UPDATE = 5.0  # times the typical one; healthy updates vary by much less, those with wrong moments are 10 and more
_UPDATES, _LOSSES, _FIRST_LOSSES = 16, 64, 5
_MIN_RISE, _DEVIATIONS = 0.15, 6.0  # 62 healthy resumes of public runs rose by at most 0.04, two that broke by 9
_TOLERANCE = 1e-3  # norms of the same numbers in other shards


class ResumeGuard:
    """Remembers what a run looked like when it was saved, and answers if it does not look so in its first steps.

        optimizer's state:  the norms of its moments are those that were saved, else `RestartOptimizer`
        updates:            rms of all that the weights have moved by  <=  5 x typical x sum of the learning rates,
                            typical: the median of rms / learning rate of 16 steps before the checkpoint;
                            else `ReturnToLoaded`
        loss:               median of the first 5  <=  level + max(0.15, 6 noise), both of the 64 before the checkpoint,
                            else a warning

    Args:
        steps: Optimizer steps after a resume within which the updates are watched; 0 turns everything off.
        ramp: Optimizer steps until the learning rate is back after an answer; 0 leaves it alone.

    Raises:
        ValueError: If an argument is below 0.

    Example:
        >>> watch = ResumeGuard(steps=50, ramp=50)
        >>> watch.is_watching  # nothing was resumed
        False
    """

    def __init__(self, steps: int, ramp: int) -> None:
        for name, value in (("steps", steps), ("ramp", ramp)):
            if value < 0:
                raise ValueError(f"`SpikeGuard(resume_{name}=...)` must be at least 0, got {value}.")
        self.steps = steps
        self.ramp = ramp
        self._losses: deque[float] = deque(maxlen=_LOSSES)
        self._updates: deque[float] = deque(maxlen=_UPDATES)
        self._saved: dict[str, Any] | None = None
        self._first_losses: list[float] | None = None
        self._losses_before: list[float] = []
        self._path = 0.0  # sum of learning rates
        self._steps_left = 0

    @property
    def is_watching(self) -> bool:
        """Whether the run is in its first steps after a resume."""
        return self._steps_left > 0

    @property
    def needs_snapshot(self) -> bool:
        """Whether the state that was loaded has to be kept."""
        return self._saved is not None

    def check_state(self, trainer: Trainer, recovery: Recovery) -> Window | None:
        """Before the first step: compare the optimizers' state with what was saved, and restart them if it differs."""
        saved, self._saved = self._saved, None
        if saved is None:
            return None
        self._steps_left, self._path = self.steps, 0.0
        self._first_losses, self._losses_before = [], [loss for loss in self._losses if math.isfinite(loss)]
        if len(saved["moments"]) != trainer.world_size:
            return None
        before, now = saved["moments"][trainer.global_rank], moment_norms(trainer)
        differing = [name for name, norm in before.items() if not _is_alike(now.get(name, 0.0), norm)]
        if not _on_any_rank(bool(differing), trainer):
            return None
        name = differing[0] if differing else next(iter(before), "")
        verdict = Verdict(is_anomaly=True, score=math.inf, threshold=before.get(name, math.nan))
        window = Window(response=RestartOptimizer(self.ramp))
        window.anomaly = Anomaly(f"norm of {name}", now.get(name, 0.0), verdict)
        window.restored = window.response.respond(recovery) if window.response else []
        self._updates.clear()  # of an optimizer that knew more
        return window

    def after_step(self, recovery: Recovery, window: Window) -> None:
        """After a healthy step: remember it, or go back to what was loaded if the weights have moved too far."""
        if LOSS in window.readings:
            self.note_first_loss(window)
            self._losses.append(window.readings[LOSS])
        if not self.is_watching:
            self._note_update(None if recovery.ring is None else recovery.ring.move_in_first_step(), recovery.lr)
            return
        moved = None if recovery.ring is None else recovery.ring.move_since_pinned()
        self._steps_left = 0 if moved is None else self._steps_left - 1
        self._path += recovery.lr
        limit = MAX_UPDATE * statistics.median(self._updates) * self._path if self._updates else math.inf
        if moved is not None and not moved <= limit:
            verdict = Verdict(is_anomaly=True, score=moved / limit, threshold=limit)
            window.anomaly, window.response = Anomaly("update_rms", moved, verdict), ReturnToLoaded(self.ramp)
            window.restored = window.response.respond(recovery)
            self._steps_left = 0
        if not self.is_watching:
            recovery.release_loaded()

    def note_first_loss(self, window: Window) -> None:
        """Compare the first losses after a resume, those of spikes included, with what they were."""
        if self._first_losses is None or LOSS not in window.readings:
            return
        self._first_losses.append(window.readings[LOSS])
        if len(self._first_losses) == _FIRST_LOSSES:
            self._compare_losses(self._first_losses)
            self._first_losses = None

    def _note_update(self, rms: float | None, lr: float) -> None:
        if self.steps and rms is not None and lr > 0 and math.isfinite(rms):
            self._updates.append(rms / lr)

    # The checkpoint

    def state_dict(self, trainer: Trainer | None) -> dict[str, Any]:
        """What the run looks like now, on this rank."""
        return {
            "losses": list(self._losses),
            "updates": list(self._updates),
            "moments": [{} if trainer is None or not self.steps else moment_norms(trainer)],
        }

    def of_all_ranks(self, trainer: Trainer, own: dict[str, Any]) -> dict[str, Any]:
        """This rank's `state_dict`, with the moments of every rank's shards; each of them must call this."""
        return {**own, "moments": of_all_ranks(trainer, own["moments"][0])}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Watch, from the first step on, whether it still looks so."""
        self._losses = deque(state_dict["losses"], maxlen=_LOSSES)
        self._updates = deque(state_dict["updates"], maxlen=_UPDATES)
        self._saved = state_dict if self.steps else None

    def _compare_losses(self, first: list[float]) -> None:
        before = self._losses_before
        if len(before) < _LOSSES // 2:
            return
        level = statistics.median(before)
        noise = 1.4826 * statistics.median(abs(loss - level) for loss in before)
        now = statistics.median(first)
        if not now <= level + max(_MIN_RISE, _DEVIATIONS * noise):
            rank_zero_warn(
                f"The loss does not go on where the checkpoint was written: {now:.4g} in the first steps, {level:.4g}"
                " before. Are these the weights, the data and the loss of that run?"
            )


def moment_norms(trainer: Trainer) -> dict[str, float]:
    """The l2 norm of each kind of moment of each optimizer, of this process's own shards.

    Example:
        >>> moment_norms.__name__  # needs a Trainer with optimizers
        'moment_norms'
    """
    norms = {}
    for index, optimizer in enumerate(trainer.optimizers):
        suffix = f"/{index}" if index else ""
        for name, norm in _norms_of(optimizer).items():
            norms[f"{type(optimizer).__name__}.{name}{suffix}"] = norm
    return norms


@torch.no_grad()
def _norms_of(optimizer: Optimizer) -> dict[str, float]:
    moments: dict[str, list[torch.Tensor]] = {}
    for entry in optimizer.state.values():
        for name, value in entry.items() if isinstance(entry, dict) else ():
            if name in FIRST_MOMENTS | SECOND_MOMENTS and isinstance(value, torch.Tensor):
                moments.setdefault(name, []).append(local(value).float())
    return {name: float(torch.nn.utils.get_total_norm(tensors)) for name, tensors in moments.items()}


def _is_alike(norm: float, before: float) -> bool:
    return abs(norm - before) <= _TOLERANCE * before or not math.isfinite(before)


def _on_any_rank(truth: bool, trainer: Trainer) -> bool:
    if trainer.world_size == 1:
        return truth
    counted = torch.tensor(float(truth), device=trainer.strategy.root_device)
    dist.all_reduce(counted)
    return counted.item() > 0
