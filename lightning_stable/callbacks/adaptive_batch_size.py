# SPDX-License-Identifier: Apache-2.0
"""Let the batch grow when the noise of its gradient asks for it."""

import math
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_stable._lightning import progress
from lightning_stable._lightning.accumulation import AccumulationWindows, make_loader_again
from lightning_stable._lightning.loggers import log_scalars
from lightning_stable.callbacks.batches.batch_counts import count_samples
from lightning_stable.callbacks.batches.batch_growth import BatchGrowth
from lightning_stable.callbacks.batches.batch_refusals import (
    check_arguments,
    refuse_trainer,
    refuse_training,
    refuse_validation,
)
from lightning_stable.callbacks.batches.loader_batch_size import LoaderBatchSize
from lightning_stable.callbacks.batches.micro_gradients import MicroGradients
from lightning_stable.callbacks.batches.schedule_increments import set_increments, step_others_again
from lightning_stable.functional.gradient_noise import BatchTest, GradientNoise
from lightning_stable.optim.step_gate import StepGate

_USER = "adaptive_batch_size"
_MOST_MISSED = 10  # measurements that came to nothing, in a row, before that is said


class AdaptiveBatchSize(Callback):
    """Grows the batch when the gradients of its micro-batches, on all ranks, differ too much from each other.

        g_j: gradients of m micro-batches of b samples in one optimizer step, gbar their mean, u = gbar / ||gbar||
        V = b / (m - 1) sum_j ||g_j - gbar||^2           one sample's variance, without one sample's gradient
        A = b / (m - 1) sum_j (u' (g_j - gbar))^2        its part along the gradient
        S = ||gbar||^2 - V / (m b)                       the squared true gradient, without the noise in gbar
        norm:            B = V / (eta^2 S)
        inner_product:   B = A / (theta^2 S)
        orthogonality:   B = the larger one of that and (V - A) / (nu^2 S)
        batch = max(batch, smallest multiple of the first batch that is at least B)

    V, A and S are each averaged exponentially over the measurements, as one alone is noisy and the batch never shrinks;
    for the same reason the first 5 only watch. Where the mean of S is not above 0, nothing grows.

    Paper: Lau et al., "AdAdaGrad: Adaptive Batch Size Schemes for Adaptive Gradient Methods" (2024); the norm test is
    that of Byrd et al. (2012), the others those of Bollapragada et al. (2018), `orthogonality` its augmented test.

    Deviations: micro-batches in the place of samples; S in the place of ||gbar||^2, which at a small batch is nearly
    all noise and hides that the batch is too small; averages; `max_growth`.

    Where micro-batches differ in size, as sequences in buckets and graphs do, b is their harmonic mean in V, A and S,
    and their mean where the batch is counted.

    Measured is on the way into `.grad`, before DDP averages: m = ranks x micro-batches, at the cost of the gradients'
    norms (and, but for `norm`, of up to 4 copies of them) in a measuring step. One rank with one micro-batch has
    nothing to compare: its measuring steps take two batches of the loader, also while the batch has not grown. For
    steps without any such difference start with `Trainer(accumulate_grad_batches=2)` and half the batch.

    `accumulate_grad_batches` grows first, from one optimizer step to the next. When it has come to `max_accumulation`,
    the loader's batch grows, between epochs, if `max_loader_batch_size` allows it and module, its `hparams` or data
    module have the attribute `batch_size`, from which `train_dataloader` makes the loader; it is set on every rank.
    An epoch's last step is as long as there are batches left, and its gradient is a mean as well. Where the loader has
    no length, Lightning divides it by the whole window as ever; it is not measured, and neither are steps with a batch
    that `training_step` returned `None` for, and an epoch's last step where its batches differ in size. Where ten
    measurements in a row come to nothing, a warning says so.

    Schedules go on as if the batch had not grown: those of interval "step" are moved on by as many steps as the first
    batch size would have made of the same data (`increment` of a `ProfileLR` in steps or epochs; others are stepped so
    many times). What is as long as `trainer.estimated_stepping_batches` ends with the data. `Trainer(max_steps=...)`
    counts real steps: bound a run by `max_epochs` or by `TrainingBudget`. The learning rate is scaled while a step
    runs, and only then, so that every schedule keeps it.

    Logs `stability/batch_size` (samples a step), `stability/gradient_noise_scale` (V / S, the batch at which noise and
    gradient are equally strong) and `stability/batch_size_wanted` (B) after each measurement; with `scale_lr` also
    `stability/lr_scale/adaptive_batch_size`.

    Args:
        test: `"norm"`, `"inner_product"` or `"orthogonality"`.
        eta: Tolerated error of the gradient, relative to it. Default of the three: the paper's.
        theta: Tolerated error along the gradient.
        nu: Tolerated error across.
        every_n_steps: Optimizer steps from one measurement to the next.
        max_batch_size: Samples per optimizer step, over all ranks, that growing never exceeds; `None` for no limit.
        max_accumulation: Micro-batches per optimizer step that growing never exceeds.
        max_loader_batch_size: The largest `batch_size` of the loader; `None` leaves the loader alone.
        scale_lr: With the batch, `"linear"` or `"sqrt"`, as in `scale_lr`; `None` leaves the learning rate alone.
        smoothing: Weight of the average so far when a measurement comes in, in [0, 1); 0.9 averages about 10.
        max_growth: How many times as large the batch may become after one measurement (one more multiple of the first
            batch it always may); infinity for the paper's.

    Raises:
        ValueError: If an argument is out of its bounds.
        RuntimeError: With manual optimization, sharded parameters, an optimizer that needs a closure, callbacks that
            set `accumulate_grad_batches`, schedulers of another frequency than 1, a loader that does not grow or would
            leave an epoch fewer batches than `val_check_interval`, or if a checkpoint began with another batch.

    Example:
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> callback = AdaptiveBatchSize(eta=0.3, max_batch_size=4096, scale_lr="sqrt")
        >>> trainer = Trainer(callbacks=[callback], accumulate_grad_batches=2, accelerator="cpu", **quiet)
    """

    def __init__(
        self,
        test: BatchTest = "norm",
        eta: float = 0.1,
        theta: float = 0.1,
        nu: float = 0.1,
        every_n_steps: int = 10,
        max_batch_size: int | None = None,
        max_accumulation: int = 32,
        max_loader_batch_size: int | None = None,
        scale_lr: Literal["linear", "sqrt"] | None = None,
        smoothing: float = 0.9,
        max_growth: float = 2.0,
    ) -> None:
        super().__init__()
        self._settings: dict[str, Any] = {
            "test": test,
            "eta": eta,
            "theta": theta,
            "nu": nu,
            "smoothing": smoothing,
            "max_growth": max_growth,
            "max_batch_size": max_batch_size,
            "max_accumulation": max_accumulation,
            "max_loader_batch_size": max_loader_batch_size,
        }
        check_arguments(**self._settings, every_n_steps=every_n_steps, scale_lr=scale_lr)
        self.every_n_steps = every_n_steps
        self.scale_lr: Literal["linear", "sqrt"] | None = scale_lr
        self._growth = BatchGrowth(**self._settings)
        self._ranks = 1
        self._steps_taken = 0
        self._batches = 0  # of this epoch, that optimizer steps were made of
        self._samples: int | None = None  # of the batch under way
        self._outgrown: tuple[int, float] | None = None  # samples and number of the loader's batches before it grew
        self._micro: MicroGradients | None = None
        self._reading: tuple[GradientNoise, float] | None = None
        self._step: tuple[int, int] | None = None  # batches and first steps that the step under way is made of
        self._measured = self._has_warned = False
        self._missed = 0  # measurements that were due, since the last one
        self._loader: LoaderBatchSize | None = None
        self._windows: AccumulationWindows | None = None
        self._gate: StepGate | None = None

    @property
    def batch_size(self) -> int | None:
        """Samples per optimizer step over all ranks; `None` before the first measurement."""
        return self._growth.batch_size(self._ranks) or None

    # Beginning and end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, and start anew; a checkpoint is loaded after this."""
        if stage != "fit":
            return
        grows_loader = self._growth.max_loader_batch_size is not None
        refuse_trainer(trainer, pl_module, grows_loader)
        self._growth = BatchGrowth(**self._settings, first_accumulation=trainer.accumulate_grad_batches)
        if grows_loader:
            self._loader = LoaderBatchSize(trainer, pl_module)
            self._growth.first_loader_batch_size = self._loader.first
        self._ranks = trainer.world_size
        self._steps_taken = self._batches = self._missed = 0
        self._outgrown = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """A resumed run has the loader that it was saved with."""
        growth, now = self._growth, trainer.accumulate_grad_batches
        if growth.first_accumulation != now:
            raise RuntimeError(
                "The checkpoint of `AdaptiveBatchSize` is of a run that began with `accumulate_grad_batches` "
                f"{growth.first_accumulation}, but now it is {now}. Resume with what the run began with: growth is "
                "counted from there."
            )
        if growth.first_loader_batch_size:
            self._loader = self._loader or LoaderBatchSize(trainer, pl_module)
            self._loader.resume(growth.first_loader_batch_size, growth.loader)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say where windows end, and stand in front of the optimizer's step."""
        growth = self._growth
        refuse_training(trainer, growth.max_loader_batch_size is not None)
        if growth.loader == 1 and math.isfinite(trainer.num_training_batches):
            growth.first_epoch_batches = int(trainer.num_training_batches)
        if growth.max_loader_batch_size is not None:
            refuse_validation(trainer, growth.first_epoch_batches // growth.largest_loader)
        self._windows = AccumulationWindows(trainer)
        self._gate = StepGate.attach(trainer.optimizers[0], user=_USER)
        self._gate.before_step[_USER] = self._before_step

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let the loader's batch grow."""
        self._batches = 0
        before = self._growth.samples
        size = self._growth.grow_loader(self._ranks)
        if size:
            assert self._loader is not None
            self._outgrown = (before, trainer.num_training_batches)
            self._loader.set(size)
            make_loader_again(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave trainer, optimizer and module as they were found."""
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave trainer, optimizer and module as they were found."""
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave trainer, optimizer and module as they were found."""
        self._leave()

    # One step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Begin a window of the length that is due, and tell schedules what it amounts to when it ends."""
        assert self._windows is not None
        assert self._gate is not None
        if batch_idx == 0:
            self._batches = 0
        self._samples = count_samples(batch)
        self._check_loader(trainer)
        is_due = self._steps_taken % self.every_n_steps == 0
        alone = self._ranks == self._growth.length == 1
        self._windows.begin_batch(batch_idx, 2 if is_due and alone else self._growth.length)
        if self._windows.begins:
            self._gate.scales[_USER] = self._growth.lr_scale(self.scale_lr)
            self._forget_step()
            if is_due:
                self._count_missed()
                parameters = [p for group in trainer.optimizers[0].param_groups for p in group["params"]]
                keeps_directions = self._growth.test != "norm"
                self._micro = MicroGradients(parameters, self._windows.length, keeps_directions)
        if not progress.is_accumulating(trainer):
            batches, of = self._windows.count, trainer.num_training_batches
            before = self._growth.first_steps(self._batches, of, is_last=False)
            after = self._growth.first_steps(self._batches + batches, of, progress.is_last_batch(trainer))
            self._step = (batches, after - before)
            set_increments(trainer, "steps", after - before)
            if self._growth.first_epoch_batches:
                whole = self._growth.first_steps(self._growth.first_epoch_batches, of, is_last=True)
                set_increments(trainer, "epochs", (after - before) / whole)

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """A micro-batch's gradient is about to arrive."""
        if self._micro is not None:
            self._micro.begin_backward()

    def on_after_backward(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """It has arrived; after the last one all of them can be compared."""
        if self._micro is None:
            return
        self._micro.end_backward(self._samples)
        if progress.is_accumulating(trainer):
            return
        micro, self._micro = self._micro, None
        self._reading = micro.finish(trainer, ends_epoch=progress.is_last_batch(trainer))
        if micro.unusable:
            self._warn(micro.unusable)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step was taken, unless somebody has put back what was before it."""
        if progress.is_accumulating(trainer):
            return
        if self._step is not None:
            batches, first_steps = self._step
            self._batches += batches
            step_others_again(trainer, first_steps - 1)
        if self._measured:
            self._log(trainer)
        self._forget_step()

    # The checkpoint

    def state_dict(self) -> dict[str, Any]:
        """How far the batch has grown, and what is known of the noise."""
        return {"steps_taken": self._steps_taken, "batches": self._batches, **self._growth.state_dict()}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint, or from where a rollback in mid-run went back to; the next window follows."""
        self._steps_taken = state_dict["steps_taken"]
        self._batches = state_dict["batches"]
        self._growth.load_state_dict(state_dict)
        self._forget_step()

    def _before_step(self) -> None:
        self._steps_taken += 1
        if self._reading is not None:
            self._growth.measured(*self._reading, self._ranks)
            self._reading, self._measured, self._missed = None, True, 0

    def _log(self, trainer: Trainer) -> None:
        growth = self._growth
        scalars = {
            "stability/batch_size": growth.batch_size(self._ranks),
            "stability/batch_size_wanted": growth.required(),
            "stability/gradient_noise_scale": growth.noise.scale,
        }
        if self.scale_lr is not None:
            scalars["stability/lr_scale/adaptive_batch_size"] = growth.lr_scale(self.scale_lr)
        log_scalars(trainer, scalars)

    def _check_loader(self, trainer: Trainer) -> None:
        (samples, batches), self._outgrown = self._outgrown or (0, 0), None
        is_shorter = trainer.num_training_batches < batches  # batches of several sizes may begin with a small one
        if self._samples is not None and self._samples <= samples and not is_shorter:
            raise RuntimeError(
                f"`AdaptiveBatchSize(max_loader_batch_size=...)` has set `batch_size` to "
                f"{self._growth.first_loader_batch_size * self._growth.loader}, but the loader's batches still have "
                f"{self._samples} samples. Let `train_dataloader` read `batch_size`, or leave the argument out."
            )

    def _count_missed(self) -> None:
        """A measurement is due; say so if those before came to nothing."""
        if self._missed == _MOST_MISSED:
            self._warn(
                f"none of the last {_MOST_MISSED} times when it was due came to anything. It needs steps of at least 2 "
                "micro-batches that the loader does not cut short, all with a loss, and finite gradients. Let epochs "
                "be longer than `accumulate_grad_batches`, and give the data set a length"
            )
        self._missed += 1

    def _warn(self, reason: str) -> None:
        if not self._has_warned:
            self._has_warned = True
            rank_zero_warn(f"`AdaptiveBatchSize` cannot measure, and the batch will not grow: {reason}.")

    def _forget_step(self) -> None:
        if self._micro is not None:
            self._micro.detach()
        self._micro = self._reading = self._step = None
        self._measured = False

    def _leave(self) -> None:
        self._forget_step()
        if self._windows is not None:
            self._windows.detach()
            self._windows = None
        if self._loader is not None:
            self._loader.restore()
            self._loader = None
        if self._gate is not None:
            self._gate.detach(user=_USER)
            self._gate = None
