# SPDX-License-Identifier: Apache-2.0
"""A guarded run with faults, a log of what it has kept, and the clean run that never held the rest."""

import math
import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from lightning.pytorch import Callback
from torch.utils.data import IterableDataset

from lightning_stable._lightning import progress
from lightning_stable.functional.fingerprint import fingerprint
from lightning_stable.guard import Rollback, ScaleLR, SkipStep
from lightning_stable.testing import FaultSchedule, RecoveredRun, assert_recovers
from tests.faulty_runs import Outcome, assert_same, make_batches, run
from tests.guard.test_spike_guard import guard, scaler_plugin

BATCHES, EPOCHS, SNAPSHOT_EVERY, WARMUP = 15, 2, 4, 3  # an odd number: with accumulation the last step is shorter
LADDERS = {
    "skip": lambda: [SkipStep(times=99)],
    "roll back": lambda: [Rollback(times=99)],
    "replay": lambda: [Rollback(mode="replay", times=99)],
    "short": lambda: [SkipStep(times=1), Rollback(mode="replay", times=1), ScaleLR(times=1), Rollback(times=1)],
}
PRECISIONS = {
    "32-true": dict,
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "16-mixed": lambda: {"plugins": [scaler_plugin()]},
}
KINDS = {
    "nan_loss": {},
    "huge_loss": {"factor": 1e6},
    "nan_gradient": {},
    "inf_gradient": {"target": "layers.0.weight"},
    "huge_gradient": {"factor": 1e6},
    "nan_activation": {},
    "huge_activation": {"target": "layers.4", "factor": 1e6},
    "nan_data": {},
}
SILENT = {"lr_drift", "dead_loss_scale"}
NOT_FINITE = {"nan_loss", "nan_gradient", "inf_gradient", "nan_activation", "nan_data"}

Step = tuple[tuple[int, int], ...]  # (epoch, index) of each batch of a step


def steps_of_an_epoch(accumulate: int) -> int:
    """The last one may be shorter."""
    return math.ceil(BATCHES / accumulate)


class Kept(Callback):
    """Behind the guard: which steps were kept, which were left out; knows a batch by its contents."""

    def __init__(self, guarded, batches):
        self.guard = guarded
        self.indices = {fingerprint(batch): index for index, batch in enumerate(batches)}
        self.steps: list[Step] = []
        self.bad: list[Step] = []
        self.steps_before: list[int] = []  # steps that were kept when the n-th was tried
        self._step: Step = ()

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._step += ((trainer.current_epoch, self.indices[fingerprint(batch)]),)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if progress.is_accumulating(trainer):
            return
        self.steps_before.append(len(self.steps))
        if len(self.guard.incidents) == len(self.bad):
            self.steps.append(self._step)
        else:
            self.bad.append(self._step)
            undone = self.guard.incidents[-1].steps_rolled_back
            del self.steps[len(self.steps) - undone :]
        self._step = ()


class EpochByEpoch(IterableDataset):
    """Other batches in every epoch."""

    def __init__(self, epochs):
        self.epochs = iter(epochs)

    def __iter__(self):
        return iter([{key: value.clone() for key, value in batch.items()} for batch in next(self.epochs)])


@dataclass
class ChaoticRun:
    """A run, and how it came to be."""

    schedule: FaultSchedule
    ladder: str
    precision: str
    accumulate: int
    outcome: Outcome
    recovered: RecoveredRun
    kept: Kept
    batches: list[Any]
    settings: Callable[[], dict[str, Any]]  # made anew for the clean run, which has them, too


def chaotic_run(schedule, ladder, precision, accumulate, num_workers=0, batches=None, settings=dict) -> ChaoticRun:
    """Train through `schedule`; `assert_recovers` has its say."""
    batches = make_batches(BATCHES) if batches is None else batches
    sys.stdout.write(f"{schedule!r}, ladder {ladder}, {precision}, accumulation {accumulate}, {num_workers} workers\n")
    guarded = guard(*LADDERS[ladder](), snapshot_every=SNAPSHOT_EVERY, forgive_after=5)
    kept, recovered = Kept(guarded, batches), []

    def recover(*arguments, **more):
        allow = {"allow_halt": ladder == "short", "allow_undetected": True}
        recovered.append(assert_recovers(*arguments, **more, **allow))

    arguments = {"accumulate_grad_batches": accumulate, "epochs": EPOCHS, "num_workers": num_workers, "fit": recover}
    outcome = run(batches, [guarded, kept, *schedule], **arguments, **settings(), **PRECISIONS[precision]())
    return ChaoticRun(schedule, ladder, precision, accumulate, outcome, recovered[0], kept, batches, settings)


def assert_every_spike_was_answered(chaos: ChaoticRun) -> bool:
    """Every fault that fired was; says whether there was no harm that a clean run would not show.

    Not answered may be: huge but finite ones while the detectors warm up, or behind such a one in their windows, and
    overflows under a gradient scaler.
    """
    answered = {incident.step for incident in chaos.recovered.incidents}
    harmless = True
    for fault in chaos.recovered.fired:
        if fault.kind in SILENT:
            harmless = False
        elif fault.step not in answered:
            overflow = chaos.precision == "16-mixed" and fault.kind not in ("nan_loss", "nan_activation", "nan_data")
            warming_up = fault.kind not in NOT_FINITE and chaos.kept.steps_before[fault.step] < WARMUP
            assert overflow or warming_up or (fault.kind not in NOT_FINITE and not harmless), f"{fault} went by"
            harmless = False
    return harmless


def assert_nothing_else_was_lost(chaos: ChaoticRun) -> None:
    """Only what the ladder says is left out; the rest is kept, in order."""
    per_step = [tuple(range(i, min(i + chaos.accumulate, BATCHES))) for i in range(0, BATCHES, chaos.accumulate)]
    everything = [tuple((epoch, index) for index in step) for epoch in range(EPOCHS) for step in per_step]
    left = [step for step in everything if step not in chaos.kept.bad]
    undone = [incident.steps_rolled_back for incident in chaos.recovered.incidents]
    assert all(count < SNAPSHOT_EVERY for count in undone)
    if chaos.recovered.halted:
        left = left[: len(chaos.kept.steps)]
    if chaos.ladder in ("skip", "replay"):
        assert chaos.kept.steps == left
    elif chaos.ladder == "roll back":
        assert len(left) - sum(undone) == len(chaos.kept.steps)
        assert [step for step in left if step in chaos.kept.steps] == chaos.kept.steps


def assert_it_is_the_run_without_the_bad_batches(chaos: ChaoticRun) -> None:
    """To the last bit."""
    epochs = [[chaos.batches[i] for step in chaos.kept.steps for e, i in step if e == epoch] for epoch in range(EPOCHS)]
    if chaos.recovered.halted:
        epochs = [batches for batches in epochs if batches]
    elif not all(epochs):
        return  # nothing is left of an epoch that Lightning has ended and validated; no loader is as empty as that
    arguments = {
        "accumulate_grad_batches": chaos.accumulate,
        "epochs": len(epochs),
        **chaos.settings(),
        **PRECISIONS[chaos.precision](),
    }
    expected = run(epochs, dataset=EpochByEpoch, **arguments)
    if not chaos.recovered.halted:
        assert_same(chaos.outcome, expected)
        return
    for part in ("weights", "buffers", "optimizers", "schedules", "global_step"):
        assert_same(getattr(chaos.outcome, part), getattr(expected, part), part)


def assert_survived(chaos: ChaoticRun) -> None:
    """Everything that is promised of such a run."""
    assert all(torch.isfinite(loss) for loss in chaos.outcome.val_losses)
    harmless = assert_every_spike_was_answered(chaos)
    assert_nothing_else_was_lost(chaos)
    slowed = any(incident.response == "ScaleLR" for incident in chaos.recovered.incidents)
    if harmless and not slowed:
        assert_it_is_the_run_without_the_bad_batches(chaos)
