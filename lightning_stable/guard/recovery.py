# SPDX-License-Identifier: Apache-2.0
"""How a step is vetoed, undone, rolled back and replayed."""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection

from lightning_stable._lightning import progress
from lightning_stable._lightning.data_fetcher import FetcherTap, Kept
from lightning_stable._lightning.passed_over import PassedOver
from lightning_stable.guard.ladder import Escalation
from lightning_stable.guard.lr_scale import LRScale
from lightning_stable.guard.replays import Replay, Replays
from lightning_stable.guard.signals import GradientReading, Signals
from lightning_stable.optim import StepGate, reset_moments
from lightning_stable.snapshots.random_state import RandomState
from lightning_stable.snapshots.snapshot import Snapshot
from lightning_stable.snapshots.snapshot_ring import SnapshotRing
from lightning_stable.snapshots.step_state import StepState
from lightning_stable.snapshots.transfer import Transfer

USER = "spike_guard"
_IN_A_SNAPSHOT = ("weights", "optimizer", "buffers", "metrics", "random state", "schedules", "counters")


@dataclass
class Aftermath:
    """What a response has done, in numbers.

    Example:
        >>> Aftermath().steps_rolled_back
        0
    """

    steps_rolled_back: int = 0
    batches_passed_over: int = 0
    norm_before: float | None = None
    norm_after: float | None = None
    seconds_lost: float = 0.0


class Recovery:
    """Keeps what is needed to undo the step that runs, and to go back to the last snapshot.

    A *window* is what one optimizer step is made of: one batch, or the micro-batches that are accumulated. Data that
    was passed over stays passed over, so the loop's batch index remains the position in the data; only batches that
    are replayed are numbered again, up to the index of the batch that was left out. Batches that are to be passed over
    go through the loop like any other, without their `training_step`, and each of their windows is undone.

    Args:
        trainer: The trainer in its `fit`.
        pl_module: The module it trains.
        guard: The callback this works for.
        signals: The guard's detectors; what they remember goes back together with the model.
        lr_scale: The factor on the learning rate; it does not go back.
        escalation: Learns of every rollback.
        ring: The snapshots; `None` if no response needs any.
        snapshot_every: Windows from one snapshot to the next.
        keep_batches: Whether the batches since the oldest snapshot are kept for a replay.
        keep_window: Whether the batches of the window that runs are kept.
        undo_taken: Whether a step can be undone when an optimizer has moved already: weights and optimizer state are
            copied for every step.

    Example:
        >>> Recovery.__name__  # needs a running fit; see `SpikeGuard`
        'Recovery'
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        guard: Callback,
        signals: Signals,
        lr_scale: LRScale,
        escalation: Escalation,
        ring: SnapshotRing | None,
        snapshot_every: int,
        keep_batches: bool,
        keep_window: bool,
        undo_taken: bool = False,
    ) -> None:
        self._trainer = trainer
        self._signals = signals
        self._lr_scale = lr_scale
        self._escalation = escalation
        self._snapshot_every = snapshot_every
        self._keep_batches = keep_batches
        self._keep_window = keep_window
        self._undo_taken = undo_taken
        self._before_step = (
            Snapshot(trainer, pl_module, guard, Transfer("device"))
            if undo_taken
            else StepState(trainer, pl_module, guard)
        )
        self._now = StepState(trainer, pl_module, guard)
        self.ring = ring
        self.gates = [StepGate.attach(optimizer, user=USER) for optimizer in trainer.optimizers]
        for gate in self.gates:  # before anybody who resets moments in front of the step
            gate.before_step = {USER: self.before_optimizer_moves, **gate.before_step}
        self._apply_lr_scale()
        self.passed_over = PassedOver(trainer)
        self.tap = FetcherTap(lambda: None, self._before_batch, self._after_batch)
        self._window_ended = True
        self._epoch_began = True
        self._batches_before_window = 0
        self.replays = Replays(trainer, self.tap)
        self._window_started = time.perf_counter()
        self._window_length = 0
        self._data_progress = progress.data_progress(trainer)
        self._passed_over_before: dict[str, Any] = {}
        self.steps_before_window = 0
        self._steps_taken_before = 0
        self.window: list[Any] = []
        self.random_of_window: list[RandomState] = []
        self.gradients: GradientReading | None = None
        self.aftermath = Aftermath()
        self.lr = 0.0
        self.before_first_window: Callable[[], None] | None = None

    def begin_epoch(self) -> None:
        """The next window is an epoch's first: it always gets a snapshot, so that no rollback crosses epochs."""
        self._epoch_began = self._window_ended = True
        if self.ring is not None:
            self.ring.forget()
        self.tap.attach(self._trainer)

    def end_window(self) -> None:
        """The optimizer has stepped, or was vetoed: the next batch starts a new window."""
        self._window_ended = True
        self.window, self.random_of_window = [], []
        self.gradients = None
        self.aftermath = Aftermath()
        for gate in self.gates:
            gate.veto = False

    def abandon_window(self) -> None:
        """A window that was cut short before its step has not begun: what is saved now stands before it."""
        has_moved = self._steps_taken() > self._steps_taken_before
        if self._window_ended or (has_moved and not self._undo_taken):
            return
        self._before_step.restore()
        progress.restore_data_progress(self._trainer, self._data_progress)
        self.passed_over.load_state_dict(self._passed_over_before)
        self.replays.put_back_window()

    def before_optimizer_moves(self) -> None:
        """A snapshot that is still being copied must be complete before the step."""
        self._before_step.wait()
        if self.ring is not None:
            self.ring.wait()

    def veto(self) -> None:
        """Keep every optimizer from moving until the window ends."""
        for gate in self.gates:
            gate.veto = True
        self._mark_called()

    def detach(self) -> None:
        """Leave trainer and optimizers as they were found."""
        self.tap.detach()
        self.passed_over.detach()
        progress.keep_next_plateau_step(self._trainer)
        for gate in self.gates:
            gate.veto = False
            gate.detach(user=USER)

    @property
    def random_before(self) -> RandomState:
        """The random number generators as they were before the window."""
        return self._before_step.random

    def update_norm(self) -> float:
        """The l2 norm of what the step has moved the weights by; they must have been kept."""
        assert isinstance(self._before_step, Snapshot)
        return self._before_step.move().norm

    @contextmanager
    def before_the_window(self) -> Iterator[None]:
        """Within it all but parameters and optimizer state is as before the window; then all is as it is now."""
        self._now.capture()
        try:
            self._before_step.restore()
            yield
        finally:
            self._now.restore()
            progress.keep_next_plateau_step(self._trainer)  # whoever undoes the step leaves it out

    def older_snapshots(self) -> list[Snapshot]:
        """Those from which the weights have moved since, the newest first."""
        return [] if self.ring is None else self.ring.older_than(self.steps_before_window)

    # What responses may ask for

    def undo_step(self, count_skipped: bool) -> list[str]:
        """Make the vetoed step one that never happened."""
        self.aftermath.seconds_lost = time.perf_counter() - self._window_started
        self._before_step.restore(count_skipped)
        self._forget_window()
        if progress.is_last_batch(self._trainer) and not count_skipped:
            progress.step_epoch_schedulers(self._trainer)  # the epoch has ended all the same
        return ["buffers", "metrics", "random state", *([] if count_skipped else ["schedules", "counters"])]

    def can_clip(self) -> bool:
        """Whether the gradients are finite, and larger than what is known to be typical of them."""
        return self.gradients is not None and self.gradients.is_too_large

    def clip_step(self) -> list[str]:
        """Scale the gradients, in place, to the typical norm."""
        assert self.gradients is not None
        ratio = self.gradients.shrink()
        self.aftermath.norm_before, self.aftermath.norm_after = self.gradients.norm, self.gradients.norm * ratio
        return [f"gradients x {ratio:.4g}"]

    def repeats(self) -> int:
        """How many rollbacks in a row have not helped at this place; 0 at a new one."""
        return self._escalation.repeats

    def roll_back(self, back: int, replay: bool, pass_over: int) -> list[str]:
        """Restore the `back`-th newest snapshot; replay the good batches since then, or go on with new ones.

        The next `pass_over` batches of the loader are fetched and not trained on.
        """
        assert self.ring is not None
        trainer = self._trainer
        was_last = progress.is_last_batch(trainer)
        left = progress.batches_left(trainer) - self.replays.left
        self._before_step.restore()
        self._forget_window()
        windows = self._go_back(back, replay, self._before_step.random, was_last)
        self._escalation.rolled_back(windows + 1, windows if replay else 0)
        self.aftermath.batches_passed_over = self.passed_over.pass_over(pass_over, self._window_length, left)
        return list(_IN_A_SNAPSHOT)

    def return_to_loaded(self) -> list[str]:
        """Restore what a resume has loaded, and make the steps since then again if their batches are kept."""
        assert self.ring is not None
        was_last = progress.is_last_batch(self._trainer)
        self._go_back(len(self.ring), self._keep_batches, RandomState(), was_last)
        return list(_IN_A_SNAPSHOT)

    def scale_lr(self, factor: float, recover_after: int | None) -> list[str]:
        """Multiply the learning rate from here on, or until it has recovered."""
        self._lr_scale.multiply(factor, recover_after)
        self._apply_lr_scale()
        return [f"learning rate x {self._lr_scale.value:g}"]

    def reset_momentum(self, moments: Literal["first", "all"]) -> list[str]:
        """Zero the optimizers' moments."""
        for optimizer in self._trainer.optimizers:
            reset_moments(optimizer, moments)
        return [f"{moments} moments zeroed"]

    def clean_step(self) -> None:
        """The learning rate may be on its way back."""
        self._lr_scale.clean_step()
        self._apply_lr_scale()

    # What a resume is watched by

    def note_lr(self) -> None:
        """The learning rate that the coming step is made with, before schedules change it."""
        rates = [float(group["lr"]) * gate.scale for gate in self.gates for group in gate.optimizer.param_groups]
        self.lr = max(rates)

    def release_loaded(self) -> None:
        """The state that a resume has loaded is not needed any more."""
        if self.ring is not None:
            self.ring.unpin()
            if self.ring.is_temporary:
                self.ring = None

    # Around batches that are passed over

    def after_passed_batch(self) -> bool:
        """Undo the window, if this was its last batch: no step was made, but hooks and schedules have run."""
        has_ended = self.passed_over.end_batch()
        if has_ended:
            self.undo_step(count_skipped=False)
        return has_ended

    def place(self) -> tuple[RandomState, Replay]:
        """Where a run that is resumed here goes on: with which random numbers, and what it has still to replay.

        A batch that is under way is to be trained on again.
        """
        is_between = progress.is_between_batches(self._trainer)
        return RandomState() if is_between else self.random_before, self.replays.unfinished()

    def _go_back(self, back: int, replay: bool, random_after: RandomState, was_last: bool) -> int:
        """Restore a snapshot and, if asked, replay the batches since then; returns how many windows that were."""
        assert self.ring is not None
        trainer, steps = self._trainer, self._trainer.global_step
        slot, good, windows = self.ring.go_back(back)
        self.aftermath.seconds_lost = time.perf_counter() - slot.taken_at
        self.aftermath.steps_rolled_back = steps - slot.snapshot.global_step
        slot.taken_at = time.perf_counter()
        self._signals.load_state_dict(slot.signals)
        self.replays.keep_from_saving(comes_again=replay)
        if replay and good:
            self.replays.begin(good, random_after)
        elif was_last:
            progress.step_epoch_schedulers(trainer)
        return windows

    # Around every fetch

    def _before_batch(self, kept: Kept | None) -> None:
        self.replays.before_batch(kept, begins_window=self._window_ended)
        # The first fetch of an epoch draws the order of the data from the global generators, and a run that never
        # held the batch would have drawn it too: there the state is taken after the fetch.
        if self._window_ended and not self._epoch_began:
            self._begin_window()

    def _after_batch(self, batch: Any) -> None:
        if self._window_ended and self._epoch_began:
            self._begin_window()
        self._epoch_began = self._window_ended = False
        self._window_length += 1
        if self._keep_window:
            self.window.append(self._own(batch[0]))  # what was fetched is a batch and two indices
            self.random_of_window.append(RandomState())
        if self._keep_batches and self.ring is not None:
            self.ring.newest.batches.append(Kept(self._own(batch), RandomState()))

    def _begin_window(self) -> None:
        before, self.before_first_window = self.before_first_window, None
        if before is not None:
            before()
        self._window_started = time.perf_counter()
        self._window_length = 0
        self.steps_before_window = self._trainer.global_step
        self._steps_taken_before = self._steps_taken()
        self._data_progress = progress.data_progress(self._trainer)
        self._passed_over_before = self.passed_over.state_dict()
        is_passed_over = self.passed_over.begin_window(self.replays.is_on)
        if self.ring is not None:
            self.ring.allocate_optimizer_state()
            is_due = self._epoch_began or self.ring.newest.windows >= self._snapshot_every
            if is_due and self.ring.can_capture and not (is_passed_over and len(self.ring)):
                self.ring.capture(self._signals.state_dict())
            self.ring.newest.windows += 1
            self._batches_before_window = len(self.ring.newest.batches)
        if is_passed_over:
            self._mark_called()
        self._before_step.capture()

    def _forget_window(self) -> None:
        """What belongs to the window that runs is no part of what may be replayed."""
        self.replays.forget_random_states()
        if self.ring is not None:
            self.ring.newest.windows -= 1
            del self.ring.newest.batches[self._batches_before_window :]

    def _steps_taken(self) -> int:
        return sum(gate.steps_taken for gate in self.gates)

    def _mark_called(self) -> None:
        """Let schedules step without an optimizer that has."""
        for gate in self.gates:
            gate.mark_called()

    def _apply_lr_scale(self) -> None:
        for gate in self.gates:
            gate.scales[USER] = self._lr_scale.value

    def _own(self, batch: Any) -> Any:
        # on the CPU a training step gets the loader's very tensors, and may change them
        if self._trainer.strategy.root_device.type != "cpu":
            return batch
        return apply_to_collection(batch, torch.Tensor, torch.Tensor.clone)
