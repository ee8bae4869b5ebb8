# SPDX-License-Identifier: Apache-2.0
"""Small images in large batches first, large images in small batches in the end, at the same cost a step."""

import math
from bisect import bisect_right
from contextlib import ExitStack
from itertools import accumulate
from typing import Any, Literal

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.strategies import DeepSpeedStrategy
from torch import Tensor
from torch.nn import functional as F

from lightning_stable._lightning import progress
from lightning_stable._lightning.loggers import log_scalars, logging_step
from lightning_stable._lightning.trainer import callbacks_of, log_every_n_steps
from lightning_stable._lightning.training_batches import change_training_batches
from lightning_stable.callbacks.adaptive_batch_size import AdaptiveBatchSize
from lightning_stable.callbacks.batches.schedule_increments import set_increments
from lightning_stable.functional.batch_contents import replace_tensors
from lightning_stable.functional.low_frequency_crop import low_frequency_crop
from lightning_stable.optim.step_gate import StepGate
from lightning_stable.schedules.scaling_rules import scale_lr

_USER = "resolution_schedule"


class ResolutionSchedule(Callback):
    """Resizes the images of training batches stage by stage, and accumulates more batches while they are small.

        stage k: images of scale_k * H by scale_k * W;  A_k = round(A / scale_k^2) batches an optimizer step
        A_k * (scale_k * H) * (scale_k * W) = A * H * W, as far as A_k can be whole
        lr of a step = schedule's lr * A_k / A           (lr_rule="linear"; sqrt(A_k / A) for "sqrt")

    with A = `Trainer(accumulate_grad_batches=A)`: every step takes as many pixels, and an epoch of small images fewer
    steps and less time.

    Paper: Wu et al., "A Multigrid Method for Efficiently Training Video Models" (CVPR 2020), for constant cost and the
    linear rule; Wang et al., "EfficientTrain" (ICCV 2023), for `method="low_frequency"`.

    Deviations: images only, no number of frames; no short cycle of sizes from batch to batch. The batch grows by
    accumulation, as no loader can be asked for larger ones in mid-run: with A = 4 and more, A_k rounds little. Where a
    stage begins in the middle of an epoch, its first step may be of fewer batches.

    Where the run is as long as `Trainer(max_epochs=...)` says, a `ProfileLR` that is stepped with the optimizer goes on
    by micro-batches / A in steps, and by their share of the epoch in epochs, so that it ends with the run. Other
    schedules of interval "step" see fewer steps than planned. In a run of `max_steps` a step is a step. Validation has
    full images. The model must take images of all these sizes.

    Logs `stability/resolution_scale` and `stability/batch_scale` (A_k / A), every `Trainer(log_every_n_steps=...)`
    steps.

    Args:
        scales: Size of the images in each stage, as a part of theirs. Default: the paper's spatial factors.
        shares: Part of the run's epochs that each stage takes, or of its steps if it has `max_steps` alone. Default:
            alike.
        epochs: Epochs in which the second, third, ... stage begin, instead of `shares`.
        steps: Optimizer steps, as `trainer.global_step`, with which they begin, instead of `shares`.
        method: `"bilinear"`, with antialiasing, or `"low_frequency"`, see `low_frequency_crop`.
        multiple_of: Sizes are rounded to a multiple of it, such as the patch of a transformer.
        lr_rule: How the learning rate follows the batch: `"none"`, `"linear"` or `"sqrt"`.
        keys: Places of the images in the batch, such as `["pixels"]` or `["0"]`. `None`: floating-point numbers with
            four axes.

    Raises:
        ValueError: If an argument is out of its bounds; from `fit`, if a batch has no images, or the run has no length.
        RuntimeError: From `fit`, with manual optimization, DeepSpeed, `AdaptiveBatchSize`, a
            `GradientAccumulationScheduler`, or a `training_step` that takes a `dataloader_iter`.

    Example:
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> schedule = ResolutionSchedule(scales=[0.5, 1.0], shares=[0.75, 0.25], lr_rule="linear")
        >>> trainer = Trainer(callbacks=[schedule], accelerator="cpu", **quiet)
    """

    def __init__(
        self,
        scales: list[float] | None = None,
        shares: list[float] | None = None,
        epochs: list[int] | None = None,
        steps: list[int] | None = None,
        method: Literal["bilinear", "low_frequency"] = "bilinear",
        multiple_of: int = 1,
        lr_rule: Literal["none", "linear", "sqrt"] = "none",
        keys: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.scales = [0.5, 0.5**0.5, 1.0] if scales is None else list(scales)
        _check_scales(self.scales, multiple_of, keys)
        _check_stages(len(self.scales), shares, epochs, steps)
        self.shares = [1 / len(self.scales)] * len(self.scales) if shares is None else list(shares)
        _check_names(method, lr_rule)
        self.epochs = epochs
        self.steps = steps
        self.method: Literal["bilinear", "low_frequency"] = method
        self.multiple_of = multiple_of
        self.lr_rule: Literal["none", "linear", "sqrt"] = lr_rule
        self.keys = None if keys is None else list(keys)
        self._begins: list[int] = []  # of the second, third, ... stage
        self._in_epochs = False
        self._full_window = 1  # A
        self._scale = 1.0
        self._micro_batches = 0  # of the step under way
        self._step_begins = True
        self._gates: list[StepGate] = []
        self._undo: ExitStack | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stand where batches come from, and enter the stage that the run is in."""
        self._refuse(trainer, pl_module)
        self._plan(trainer)
        self._full_window = trainer.accumulate_grad_batches
        self._gates = [StepGate.attach(optimizer, user=_USER) for optimizer in trainer.optimizers]
        self._undo = ExitStack()
        self._undo.callback(setattr, trainer, "accumulate_grad_batches", self._full_window)
        change_training_batches(self._undo, trainer, "ResolutionSchedule", lambda batch: self._resized(trainer, batch))
        self._step_begins = True
        self._enter(trainer)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count what makes up the step, and tell schedules what it amounts to when it ends with this batch."""
        if self._step_begins and batch_idx % trainer.accumulate_grad_batches:
            # Lightning zeroes those of the last step at multiples alone, and another stage may begin in between
            for optimizer in trainer.optimizers:
                pl_module.optimizer_zero_grad(trainer.current_epoch, batch_idx, optimizer)
        self._micro_batches = 1 if self._step_begins else self._micro_batches + 1
        self._step_begins = not progress.is_accumulating(trainer)  # the next one; a guard may leave out this one
        if self._step_begins:
            # an epoch's last step counts whole, however few batches are left for it: so the run's length was reckoned
            missing = -(batch_idx + 1) % self._full_window if progress.is_last_batch(trainer) else 0
            self._tell_schedules(trainer, self._micro_batches, missing)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log size and batch of the step."""
        every = log_every_n_steps(trainer)
        if every > 0 and (logging_step(trainer) + 1) % every == 0:
            ratio = trainer.accumulate_grad_batches / self._full_window
            log_scalars(trainer, {"stability/resolution_scale": self._scale, "stability/batch_scale": ratio})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave trainer, optimizers and schedules as they were found."""
        self._leave(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave trainer, optimizers and schedules as they were found."""
        self._leave(trainer)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave trainer, optimizers and schedules as they were found."""
        self._leave(trainer)

    # The stages

    def _plan(self, trainer: Trainer) -> None:
        """Where each stage but the first begins, in epochs or in steps."""
        by_epochs = _is_bound_by_epochs(trainer)
        self._in_epochs = self.epochs is not None or (self.steps is None and by_epochs)
        given = self.epochs if self.epochs is not None else self.steps
        if given is not None:
            self._begins = list(given)
            return
        length = trainer.max_epochs if by_epochs else trainer.max_steps
        if length is None or length < 0:
            raise ValueError(
                "`ResolutionSchedule(shares=...)` needs to know how long the run is. Set `Trainer(max_epochs=...)` or "
                "`max_steps`, or use `ResolutionSchedule(epochs=[...])` or `steps`."
            )
        self._begins = [round(part * length) for part in accumulate(self.shares[:-1])]

    def _enter(self, trainer: Trainer) -> None:
        """Set all that depends on the stage, which follows from the place in the run alone."""
        place = trainer.current_epoch if self._in_epochs else trainer.global_step
        self._scale = self.scales[bisect_right(self._begins, place)]
        window = max(1, round(self._full_window / self._scale**2))
        trainer.accumulate_grad_batches = window
        factor = 1.0 if self.lr_rule == "none" else scale_lr(1.0, self._full_window, window, self.lr_rule)
        for gate in self._gates:
            gate.scales[_USER] = factor

    def _tell_schedules(self, trainer: Trainer, micro_batches: int, missing: int = 0) -> None:
        if not _is_bound_by_epochs(trainer):
            return
        set_increments(trainer, "steps", (micro_batches + missing) / self._full_window)
        if math.isfinite(trainer.num_training_batches):
            set_increments(trainer, "epochs", micro_batches / trainer.num_training_batches)

    # The images

    def _resized(self, trainer: Trainer, batch: Any) -> Any:
        self._enter(trainer)
        if self._scale == 1.0:
            return batch
        found: list[Tensor] = []

        def resize(tensor: Tensor) -> Tensor:
            if self.keys is None and not (tensor.ndim == 4 and tensor.is_floating_point()):
                return tensor
            found.append(tensor)
            return self._smaller(tensor)

        for place in [None] if self.keys is None else self.keys:
            batch = replace_tensors(batch, resize, place, "ResolutionSchedule(keys=...)")
        if not found:
            raise ValueError(
                "`ResolutionSchedule` finds no images [B, C, H, W] of floating-point numbers in the batch. Name their "
                'places, such as `ResolutionSchedule(keys=["pixels"])`.'
            )
        return batch

    def _smaller(self, images: Tensor) -> Tensor:
        height, width = (self._side(side) for side in images.shape[-2:])
        if self.method == "low_frequency":
            return low_frequency_crop(images, height, width)
        exact = images if images.dtype in (torch.float32, torch.float64) else images.float()
        small = F.interpolate(exact, (height, width), mode="bilinear", antialias=True, align_corners=False)
        return small.to(images.dtype)

    def _side(self, full: int) -> int:
        multiple = self.multiple_of
        return min(full, max(multiple, round(self._scale * full / multiple) * multiple))

    # Beginning and end

    def _refuse(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if not pl_module.automatic_optimization:
            raise RuntimeError(
                "`ResolutionSchedule` accumulates batches, and leaves that to Lightning: it cannot with "
                "`automatic_optimization = False`."
            )
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise RuntimeError("`ResolutionSchedule` cannot change DeepSpeed's accumulation. Use another strategy.")
        for callback in callbacks_of(trainer):
            if isinstance(callback, GradientAccumulationScheduler | AdaptiveBatchSize):
                raise RuntimeError(
                    f"`ResolutionSchedule` and `{type(callback).__name__}` both set `accumulate_grad_batches`. Leave "
                    "one of them out."
                )

    def _leave(self, trainer: Trainer) -> None:
        if self._undo is None:
            return
        self._undo.close()
        self._undo = None
        self._tell_schedules(trainer, self._full_window)
        for gate in self._gates:
            gate.detach(user=_USER)
        self._gates = []


def _is_bound_by_epochs(trainer: Trainer) -> bool:
    return trainer.max_epochs is not None and trainer.max_epochs >= 0


def _check_scales(scales: list[float], multiple_of: int, keys: list[str] | None) -> None:
    call = "ResolutionSchedule"
    if not scales or not all(_is_number(scale) and 0.0 < scale <= 1.0 for scale in scales):
        raise ValueError(f"`{call}(scales=...)` must be numbers in (0, 1], one for each stage, got {scales!r}.")
    if not isinstance(multiple_of, int) or isinstance(multiple_of, bool) or multiple_of < 1:
        raise ValueError(f"`{call}(multiple_of=...)` must be a whole number of at least 1, got {multiple_of!r}.")
    if keys is not None and not keys:
        raise ValueError(f"`{call}(keys=...)` must name at least one place in the batch, got [].")


def _check_stages(count: int, shares: list[float] | None, epochs: list[int] | None, steps: list[int] | None) -> None:
    call = "ResolutionSchedule"
    given = {
        name: value for name, value in (("shares", shares), ("epochs", epochs), ("steps", steps)) if value is not None
    }
    if len(given) > 1:
        raise ValueError(f"`{call}({next(iter(given))}=...)` must be left out if `{list(given)[1]}` is given.")
    if shares is not None:
        good = len(shares) == count and all(_is_number(share) and share >= 0 for share in shares)
        if not good or not math.isclose(sum(shares), 1.0, abs_tol=1e-6):
            raise ValueError(
                f"`{call}(shares=...)` must be {count} numbers that sum to 1, one a scale, got {shares!r}."
            )
    for name in ("epochs", "steps"):
        begins = given.get(name)
        if begins is None:
            continue
        good = all(isinstance(begin, int) and not isinstance(begin, bool) and begin >= 0 for begin in begins)
        if len(begins) != count - 1 or not good or sorted(begins) != begins:
            raise ValueError(
                f"`{call}({name}=...)` must be {count - 1} whole numbers in rising order, one a scale but the first, "
                f"got {begins!r}."
            )


def _check_names(method: str, lr_rule: str) -> None:
    if method not in ("bilinear", "low_frequency"):
        raise ValueError(f'`ResolutionSchedule(method=...)` must be "bilinear" or "low_frequency", got {method!r}.')
    if lr_rule not in ("none", "linear", "sqrt"):
        raise ValueError(f'`ResolutionSchedule(lr_rule=...)` must be "none", "linear" or "sqrt", got {lr_rule!r}.')


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)
