# SPDX-License-Identifier: Apache-2.0
"""The guard: what to watch x how to judge x what to do, inside a running `fit`."""

from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable.detectors import Detector
from lightning_stable.guard.defaults import default_ladder, default_warnings, default_watch
from lightning_stable.guard.guarded_steps import GuardedSteps
from lightning_stable.guard.incident import Incident
from lightning_stable.guard.journal import Journal
from lightning_stable.guard.ladder import Ladder
from lightning_stable.guard.lr_scale import LRScale
from lightning_stable.guard.recovery import Recovery
from lightning_stable.guard.refusals import check_snapshots, refuse_trainer, refuse_training
from lightning_stable.guard.replays import Replay
from lightning_stable.guard.responses import Response, TrainingHalted
from lightning_stable.guard.resume.checkpoint_state import check_state
from lightning_stable.guard.resume.exact_resume import ExactResume
from lightning_stable.guard.resume.resume_guard import ResumeGuard
from lightning_stable.guard.side_responses import SideResponse
from lightning_stable.guard.signals import Signals
from lightning_stable.snapshots.random_state import RandomState
from lightning_stable.snapshots.snapshot_ring import SnapshotRing


class SpikeGuard(Callback):
    """Watch loss and gradient norm, and answer a spike before the optimizer moves.

    At every optimizer step, once the gradients of the whole accumulation window are known:

        spike  <=>  loss or gradient norm is not finite, or a detector calls a watched signal an anomaly

    The step is then vetoed (or, by `ClipStep`, its gradients are shrunk), and the ladder's first response that has
    budget left and applies says what else is done. Side responses in the ladder (`SaveBatch`, `Diagnose`, `Notify`) act
    on every spike, beside the one that answers. `loss` is the mean over the window; `grad_norm` is the l2 norm of the
    unscaled gradients before clipping.

    With several ranks (DDP, or `ModelParallelStrategy` with FSDP2), `loss` is their mean, `largest_loss` the largest,
    and all of them see the same numbers and decide alike; each keeps snapshots of its own shards. If one gets SIGTERM,
    all end after the same step.

    Deviations from what other trainers do: the judgement comes before the step and not after it; a skipped step is
    undone whole (BatchNorm statistics, random numbers, schedules, counters, epoch means); spikes never enter the
    history they are judged by. Under a gradient scaler (`16-mixed`) an overflow with a finite loss is the scaler's to
    skip, until its scale has come down to 1.

    The guard must come before callbacks that average weights. LBFGS is not supported.

    Args:
        watch: From signal to detector: `loss`, `grad_norm`, `update_norm` (the l2 norm of what a step has moved the
            weights by; it is undone from a copy of weights and optimizer state that is then made for every step), or
            any key that is logged in training. By default the first two,
            with `MedianDeviation` over 64 steps at 16 robust standard deviations, and floors of 0.15 for the loss and
            4 times the median for the gradient norm.
        ladder: Responses, mildest first. By default 10 times `SkipStep`, 2 times `Rollback(escalate=8)`, 2 times
            `ScaleLR`, `Halt`.
        snapshot_every: Optimizer steps from one snapshot to the next, at least 1; each epoch begins with one. No
            snapshot is taken if the ladder holds neither `Rollback` nor `SkipData`.
        forgive_after: Clean optimizer steps in a row, replayed ones not counted, after which the whole ladder is
            available again; `None` never. A spike that so many good steps follow did no harm, and the next one is a new
            one. With the default ladder, a run of which one batch in ten is bad loses these and nothing else.
        snapshots: How many snapshots of the running epoch are kept, at least as many as the ladder's largest `back`.
            `None` keeps that many, and one more if a rung escalates.
        snapshot_to: Where snapshots of a model on CUDA live: `host` is pinned memory of the machine, which the model
            does not compete for; `device` is faster to go back to. Either way they are copied while the next forward
            and backward pass run.
        max_bytes: What the snapshots may take on this process; `None` does not limit it. Counted are parameters,
            optimizer state (estimated from the kind of optimizer, and measured after its first step), buffers, the
            modules of other callbacks, and the copy for every step that `update_norm` needs, or several optimizers by
            hand. Not counted are batches that are kept to be replayed or saved, and states of metrics. The summary at
            the end of `fit` says what the snapshots took.
        cooldown: Clean optimizer steps after a response that went back, replayed ones not counted, within which a spike
            is answered by the rungs behind that one; 0 lets it go back again.
        resume_steps: After a resume the optimizers' moments must be those that were saved, and in as many steps the
            weights may not move 5 times as far as such steps have moved them before, while the loaded state is kept;
            else the moments are zeroed, and the run goes on from the loaded state. 0 checks nothing.
        resume_ramp: Optimizer steps in which the learning rate comes back from a tenth after that; 0 leaves it alone.
        warn: From signal, as in `watch`, to a detector whose alarm is no spike: it is asked once a step is healthy, and
            an alarm only tells people, once where it begins. By default a `LevelShift` of the loss, which finds slow
            divergence; `{}` for none.

    Raises:
        ValueError: If an argument is out of its range, or, from `fit`, if the snapshots would take too much memory.
        TypeError: If `watch`, `warn` or `ladder` hold something else than detectors and responses.
        TrainingHalted: From `fit`, when the ladder has come to `Halt`.

    Example:
        >>> from lightning_stable.detectors import MedianDeviation
        >>> from lightning_stable.guard import Halt, Rollback, ScaleLR, SkipStep
        >>> guard = SpikeGuard(
        ...     watch={"loss": MedianDeviation(min_rise=0.15), "grad_norm": MedianDeviation(min_ratio=4.0)},
        ...     ladder=[SkipStep(times=10), Rollback(times=2, escalate=8), ScaleLR(factor=0.5, times=2), Halt()],
        ...     snapshot_every=50,
        ... )
        >>> guard.incidents
        []
    """

    judges_gradients = True  # so whatever changes gradients must come behind it

    def __init__(
        self,
        watch: dict[str, Detector] | None = None,
        ladder: list[Response] | None = None,
        snapshot_every: int = 50,
        forgive_after: int | None = 5,
        snapshots: int | None = None,
        snapshot_to: Literal["device", "host"] = "host",
        max_bytes: int | None = None,
        cooldown: int = 0,
        resume_steps: int = 50,
        resume_ramp: int = 50,
        warn: dict[str, Detector] | None = None,
    ) -> None:
        super().__init__()
        self._signals = Signals(
            default_watch() if watch is None else watch, default_warnings() if warn is None else warn
        )
        self._ladder = Ladder(default_ladder() if ladder is None else ladder, forgive_after, cooldown)
        check_snapshots(snapshot_every, snapshots, snapshot_to, max_bytes, self._ladder)
        self._snapshot_every = snapshot_every
        self._snapshots = snapshots
        self._snapshot_to: Literal["device", "host"] = snapshot_to
        self._max_bytes = max_bytes
        self._journal = Journal()
        self._resume = ExactResume()
        self._resumed = ResumeGuard(resume_steps, resume_ramp)
        self._recovery: Recovery | None = None
        self._passed_over: dict[str, Any] = {}
        self._place: tuple[RandomState | None, Replay | None] = (None, None)
        self._trainer: Trainer | None = None
        self._lr_scale = LRScale()
        self._steps: GuardedSteps | None = None

    @property
    def incidents(self) -> list[Incident]:
        """Every intervention so far, also those before a resume."""
        return self._journal.incidents

    @property
    def warnings(self) -> list[Incident]:
        """Every warning so far, also those before a resume."""
        return self._journal.warnings

    @property
    def ladder(self) -> Ladder:
        """The responses in order, `rungs`, and `forgive_after`."""
        return self._ladder

    # Beginning and end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything has run."""
        if stage != "fit":
            return
        refuse_trainer(trainer, self)
        self._trainer = trainer
        self._passed_over, self._place = {}, (None, None)
        self._resume.setup(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Allocate the buffers, put the gates in front of the optimizers, and go to the place of a checkpoint."""
        rungs = self._ladder.rungs
        refuse_training(trainer, self._ladder)
        self._journal.begin(trainer)
        for side in (rung for rung in rungs if isinstance(rung, SideResponse)):
            side.prepare(trainer)
        batches, replay = self._resume.go_to_place(trainer)
        self._recovery = Recovery(
            trainer,
            pl_module,
            guard=self,
            signals=self._signals,
            lr_scale=self._lr_scale,
            escalation=self._ladder.escalation,
            ring=self._make_ring(trainer, pl_module),
            snapshot_every=self._snapshot_every,
            keep_batches=any(rung.needs_replay for rung in rungs),
            keep_window=any(rung.needs_batches for rung in rungs),
            undo_taken=self._undoes_taken_steps(trainer, pl_module),
        )
        if self._passed_over:
            self._recovery.passed_over.load_state_dict(self._passed_over)
        self._resume.attach(self._recovery.tap)
        self._recovery.begin_epoch()
        self._recovery.replays.resume(batches, replay)
        self._steps = GuardedSteps(
            trainer,
            pl_module,
            self._recovery,
            self._signals,
            self._ladder,
            self._lr_scale,
            self._resumed,
            self._journal,
        )

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch's first step gets a snapshot."""
        if self._recovery is not None:
            self._recovery.begin_epoch()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """The place in the data is between two epochs."""
        self._resume.end_epoch()
        if self._recovery is not None:
            self._recovery.passed_over.forget()
        self._signals.warn_of_keys_never_logged()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let go of the optimizers."""
        self._signals.warn_of_keys_never_logged()
        self._leave()

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Print the summary, below the progress bar, which has ended by now."""
        self._journal.print_summary(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Print the summary also when the run ends badly; a checkpoint that is saved after this can be resumed."""
        if self._recovery is not None:
            if not isinstance(exception, TrainingHalted):  # whose window was answered
                self._recovery.abandon_window()
            self._leave()
            self._journal.print_summary(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave trainer and optimizers as they were found."""
        if stage == "fit":
            self._resume.teardown(trainer)
            self._trainer = None

    # One step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note which batches make up the step."""
        if self._steps is not None:
            self._steps.begin_batch(batch_idx)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Take the loss, without waiting for it."""
        if self._steps is not None:
            self._steps.note_loss(loss)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Judge the step, and veto it if it is a spike."""
        if self._steps is not None:
            self._steps.before_optimizer_moves(optimizer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Undo a vetoed step and answer it; count a clean one."""
        if self._steps is not None:
            self._steps.end_batch()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A checkpoint written during validation is not a repeated one."""
        if self._recovery is not None and not trainer.sanity_checking:
            self._recovery.replays.before_validation_or_batch()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remember the validation loss for the summary."""
        if self._recovery is not None and not trainer.sanity_checking:
            self._journal.note_validation(trainer)

    # The checkpoint

    def state_dict(self) -> dict[str, Any]:
        """Everything a resumed run needs to go on with the same history."""
        recovery = self._recovery
        now, replay = recovery.place() if recovery else self._place
        return {
            "signals": self._signals.state_dict(),
            "ladder": self._ladder.state_dict(),
            "journal": self._journal.state_dict(),
            "resume": self._resume.state_dict(self._trainer, now, replay),
            "resumed": self._resumed.state_dict(self._trainer),
            "lr_scale": self._lr_scale.state_dict(),
            "passed_over": self._passed_over if recovery is None else recovery.passed_over.state_dict(),
        }

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Put the random states of all ranks into the checkpoint, which otherwise holds what is on rank 0."""
        if trainer.world_size > 1:
            own = checkpoint["callbacks"][self.state_key]
            own["resume"] = self._resume.of_all_ranks(trainer, own["resume"])
            own["resumed"] = self._resumed.of_all_ranks(trainer, own["resumed"])

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`, all of it or, with a `ValueError` that names what is wrong with it, nothing."""
        check_state(state_dict, self._signals)
        self._signals.load_state_dict(state_dict["signals"])
        self._ladder.load_state_dict(state_dict["ladder"])
        self._journal.load_state_dict(state_dict["journal"])
        self._resume.load_state_dict(state_dict["resume"], self._trainer)
        self._resumed.load_state_dict(state_dict["resumed"])
        self._lr_scale.load_state_dict(state_dict["lr_scale"])
        self._passed_over = state_dict["passed_over"]

    # What the hooks are made of

    def _undoes_taken_steps(self, trainer: Trainer, pl_module: LightningModule) -> bool:
        """Whether a step may have to be undone when an optimizer has moved: all it moves is then copied for each."""
        by_hand = len(trainer.optimizers) > 1 and not pl_module.automatic_optimization
        return self._signals.watches_updates or by_hand

    def _make_ring(self, trainer: Trainer, pl_module: LightningModule) -> SnapshotRing | None:
        """The snapshots, if any are needed: how much they take is known, and refused, before training begins."""
        wanted = max(rung.needs_snapshots for rung in self._ladder.rungs)
        if not wanted and not self._resumed.needs_snapshot:
            return None
        count = (self._snapshots or wanted) if wanted else 1
        ring = SnapshotRing(
            trainer,
            pl_module,
            self,
            count,
            self._snapshot_to,
            self._max_bytes,
            is_temporary=not wanted,
            others=int(self._undoes_taken_steps(trainer, pl_module)),
        )
        ring.announce()
        if self._resumed.needs_snapshot:
            ring.pin_next()
        return ring

    def _leave(self) -> None:
        if self._recovery is None:
            return
        self._passed_over, self._place = self._recovery.passed_over.state_dict(), self._recovery.place()
        self._recovery.detach()
        self._journal.snapshots = "" if self._recovery.ring is None else str(self._recovery.ring)
        self._recovery = self._steps = None
