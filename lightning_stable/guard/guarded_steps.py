# SPDX-License-Identifier: Apache-2.0
"""The steps of a running `fit`: each is read, judged, and answered if it is a spike."""

from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable._lightning import progress
from lightning_stable._lightning.loggers import logging_step
from lightning_stable._lightning.termination import Termination
from lightning_stable.guard.journal import Journal
from lightning_stable.guard.ladder import Ladder
from lightning_stable.guard.lr_scale import LRScale
from lightning_stable.guard.recovery import Recovery
from lightning_stable.guard.reports import Reports
from lightning_stable.guard.responses import TrainingHalted
from lightning_stable.guard.resume.resume_guard import ResumeGuard
from lightning_stable.guard.side_responses import SideResponse, SpikedStep
from lightning_stable.guard.signals import GRAD_NORM, UPDATE_NORM, Anomaly, GradientReading, Signals
from lightning_stable.guard.step_reading import read_step, signal_suffix
from lightning_stable.guard.window import Window


class GuardedSteps:
    """Reads, judges and answers one optimizer step after another.

    Args:
        trainer: The trainer in its `fit`.
        pl_module: The module it trains.
        recovery: Vetoes and undoes steps.
        signals: Judges them.
        ladder: Says what answers a spike.
        lr_scale: Learns of spikes.
        resumed: Watches the first steps after a resume.
        journal: Where all of it is written down.

    Example:
        >>> GuardedSteps.__name__  # made by `SpikeGuard` in a running fit
        'GuardedSteps'
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        recovery: Recovery,
        signals: Signals,
        ladder: Ladder,
        lr_scale: LRScale,
        resumed: ResumeGuard,
        journal: Journal,
    ) -> None:
        self._trainer = trainer
        self._pl_module = pl_module
        self._recovery = recovery
        self._signals = signals
        self._ladder = ladder
        self._lr_scale = lr_scale
        self._resumed = resumed
        self._journal = journal
        self._reports = Reports(journal, ladder)
        self._window = Window()
        self._termination = Termination(trainer)
        recovery.before_first_window = self._check_loaded_state

    def begin_batch(self, batch_idx: int) -> None:
        """Note which batches make up the step."""
        self._recovery.replays.before_validation_or_batch()
        self._window.batches.append(batch_idx)

    def note_loss(self, loss: Tensor) -> None:
        """Take the loss, without waiting for it."""
        self._window.losses.append(loss.detach())

    def before_optimizer_moves(self, optimizer: Optimizer) -> None:
        """Judge the step, and veto it if it is a spike."""
        trainer, recovery, window = self._trainer, self._recovery, self._window
        recovery.before_optimizer_moves()  # SAM moves before it comes to its gate
        if window.is_vetoed:
            return  # by another optimizer
        if getattr(optimizer, "phase", None) == "ascend":
            return  # SAM's first gradient moves nothing; if it is bad, the second one is too
        window.stepped = True
        recovery.note_lr()
        logged = self._signals.read_logged(trainer)
        keys, sigterm = self._signals.logged_keys, self._termination.is_asked_for
        step = read_step(trainer, optimizer, window.losses, logged, keys, sigterm)
        if step.sigterm:
            self._termination.obey()
        window.losses.clear()
        window.count(step)
        if step.is_overflow:
            self._journal.overflows += 1
            return  # the gradient scaler skips it by itself and needs to learn from it
        suffix = signal_suffix(trainer.optimizers, optimizer)
        readings = step.signals(suffix)
        window.readings.update(readings)
        anomaly = self._signals.judge(readings)
        if anomaly is not None:
            typical = self._signals.typical(GRAD_NORM + suffix)
            recovery.gradients = GradientReading(optimizer, step.norm, typical, step.is_finite)
            window.rank = step.rank
            self._answer(anomaly)

    def end_batch(self) -> None:
        """Undo a vetoed step and answer it; count a clean one."""
        recovery = self._recovery
        if recovery.passed_over.is_on:
            if recovery.after_passed_batch():
                self._end_window()
            return
        recovery.replays.after_batch()
        is_automatic = self._pl_module.automatic_optimization
        if progress.is_accumulating(self._trainer) if is_automatic else not self._window.stepped:
            return
        self._judge_update()
        if self._window.is_spike:
            self._resumed.note_first_loss(self._window)
            self._respond()
        elif self._window.stepped:
            self._count_clean_step()
        self._end_window()

    def _check_loaded_state(self) -> None:
        trainer = self._trainer
        window = self._resumed.check_state(trainer, self._recovery)
        if window is not None:
            incident = window.incident(logging_step(trainer), trainer.global_step, trainer.current_epoch)
            self._journal.record(trainer, incident)

    def _judge_update(self) -> None:
        """Judge what the step has moved, which can be undone."""
        window = self._window
        if not self._signals.watches_updates or window.is_spike or GRAD_NORM not in window.readings:
            return
        window.readings[UPDATE_NORM] = norm = self._recovery.update_norm()
        anomaly = self._signals.judge({UPDATE_NORM: norm})
        if anomaly is not None:
            self._recovery.gradients = None  # too late for shrinking them
            self._answer(anomaly)

    def _answer(self, anomaly: Anomaly) -> None:
        """Ask the ladder, and veto the step or change its gradients; the rest is done when the step is over."""
        recovery, window = self._recovery, self._window
        self._lr_scale.spike()
        if window.response is not None and window.response.applies(recovery):
            response = window.response  # another optimizer of the same step is the same incident
        else:
            response = window.response = self._ladder.climb(lambda rung: rung.applies(recovery))
        window.anomaly = anomaly
        if response.vetoes:
            recovery.veto()
        else:
            window.restored += response.respond(recovery)

    def _respond(self) -> None:
        window, response = self._window, self._window.response
        assert response is not None
        sides = [side for side in self._ladder.side_responses() if isinstance(side, SideResponse)]
        for side in sides:
            side.before_response(SpikedStep(self._trainer, self._pl_module, self._recovery, self._signals, window))
        self._signals.reject(window.readings)
        if response.vetoes:
            window.restored += response.respond(self._recovery)
            self._signals.forget_undone(self._trainer)
        self._reports.spike(self._trainer, self._pl_module, self._recovery, window, sides)
        if response.halts:
            self._journal.log_step(self._trainer, window, self._recovery.gates[0])
            raise TrainingHalted(self._journal.halt_report())

    def _count_clean_step(self) -> None:
        window, recovery = self._window, self._recovery
        if window.has_gradient:  # else nothing has moved, and nothing is known of the state
            alarms = self._signals.accept(window.readings)
            self._reports.warnings(self._trainer, self._pl_module, recovery, window, alarms)
            self._ladder.clean_step(recovery.replays.is_on)
            recovery.clean_step()
        self._resumed.after_step(recovery, window)
        if window.is_spike:  # the weights have gone too far since the resume
            sides = self._ladder.side_responses()
            self._reports.spike(self._trainer, self._pl_module, recovery, window, sides)

    def _end_window(self) -> None:
        self._journal.log_step(self._trainer, self._window, self._recovery.gates[0])
        self._recovery.end_window()
        self._window = Window()
