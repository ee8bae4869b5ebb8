# SPDX-License-Identifier: Apache-2.0
"""Forget the optimizer's momentum now and then, so that no spike outlives the next reset."""

import functools
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DeepSpeedStrategy

from lightning_stable._lightning.loggers import log_scalars, logging_step
from lightning_stable.functional.rewarmup import rewarmup
from lightning_stable.optim.moments import reset_moments
from lightning_stable.optim.step_gate import StepGate

_USER = "momentum_reset"


class MomentumReset(Callback):
    """Sets the optimizer's moments to zero every n optimizer steps and re-warms the learning rate after it.

        step t = 1, 2, ..., counted by steps really taken; k = t mod every_n_steps
        k = 0:                m = 0 before the step     (moments="all": v = 0 and the bias-correction counter = 0 too)
        t >= every_n_steps:   lr of this step = schedule's lr * (1 - 0.99 * (1 + cos(pi k / (W + 1))) / 2)
                              for k < W = warmup_steps, and the schedule's lr for k >= W

    Paper: Huang et al., "SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training" (ICLR 2025).

    Deviations: SPAM zeroes both moments without restarting bias correction, which makes the update after a reset up to
    3.2 lr in size; here `"first"`, the default, keeps second moment and counter, and `"all"` restarts all three. Any
    optimizer and any LR scheduler will do, as the factor is applied only while the step runs; decoupled weight decay,
    which torch multiplies by lr, is scaled along. Steps that were vetoed, skipped by a GradScaler or rolled back do
    not count, and every optimizer counts its own.

    Logs `stability/momentum_reset` (resets so far) at each reset, and `stability/lr_scale/momentum_reset` then and
    every `Trainer(log_every_n_steps=...)` steps. With several optimizers the keys end in `/0`, `/1`, ...

    Args:
        every_n_steps: Optimizer steps between two resets. Default: SPAM's 500.
        moments: `"first"` or `"all"`, as in `reset_moments`.
        warmup_steps: Optimizer steps until the learning rate is back, 0 for none; less than `every_n_steps`.
            Default: SPAM's 150.
        warmup: The curve of the factor, as in `rewarmup`; SPAM's is `"cosine"`.

    Raises:
        ValueError: If an argument is out of its bounds.
        RuntimeError: With DeepSpeed, or if a checkpoint counts another number of optimizers.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(callbacks=[MomentumReset(every_n_steps=1000)], accelerator="cpu", **quiet)
    """

    def __init__(
        self,
        every_n_steps: int = 500,
        moments: Literal["first", "all"] = "first",
        warmup_steps: int = 150,
        warmup: Literal["cosine", "linear"] = "cosine",
    ) -> None:
        super().__init__()
        _check(every_n_steps, moments, warmup_steps, warmup)
        self.every_n_steps = every_n_steps
        self.moments: Literal["first", "all"] = moments
        self.warmup_steps = warmup_steps
        self.warmup: Literal["cosine", "linear"] = warmup
        self._steps_taken: list[int] = []  # one count per optimizer: all there is to remember
        self._gates: list[StepGate] = []
        self._stepped: list[tuple[int, int]] = []  # optimizer and step, of the steps taken in this batch

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start counting anew; a checkpoint is loaded after this."""
        if isinstance(trainer.strategy, DeepSpeedStrategy):
            raise RuntimeError("`MomentumReset` cannot reach DeepSpeed's own optimizer step. Use another strategy.")
        if stage == "fit":
            self._steps_taken = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stand in front of every optimizer's step."""
        optimizers = trainer.optimizers
        self._steps_taken = self._steps_taken or [0] * len(optimizers)
        if len(self._steps_taken) != len(optimizers):
            raise RuntimeError(
                f"The checkpoint of `MomentumReset` counts the steps of {len(self._steps_taken)} optimizers, but there "
                f"are {len(optimizers)} now. Resume with the optimizers that the checkpoint was written with."
            )
        for index, optimizer in enumerate(optimizers):
            gate = StepGate.attach(optimizer, user=_USER)
            gate.before_step[_USER] = functools.partial(self._before_step, index, gate)
            self._gates.append(gate)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log what the steps of this batch ran with."""
        every: int = trainer.log_every_n_steps  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
        log_now = every > 0 and (logging_step(trainer) + 1) % every == 0
        for index, step in self._stepped:
            where = f"/{index}" if len(self._gates) > 1 else ""
            if self._is_reset(step):
                log_scalars(trainer, {f"stability/momentum_reset{where}": step // self.every_n_steps})
            if log_now or self._is_reset(step):
                log_scalars(trainer, {f"stability/lr_scale/momentum_reset{where}": self._scale(step)})
        self._stepped.clear()

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Leave the optimizers as they were found."""
        self._detach()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave the optimizers as they were found."""
        self._detach()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizers as they were found."""
        self._detach()

    def state_dict(self) -> dict[str, Any]:
        """Steps taken so far, one count per optimizer."""
        return {"steps_taken": list(self._steps_taken)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Count on from a checkpoint, or from where a rollback in mid-run went back to."""
        self._steps_taken = [int(count) for count in state_dict["steps_taken"]]
        self._stepped.clear()

    def _before_step(self, index: int, gate: StepGate) -> None:
        step = self._steps_taken[index] + 1
        if self._is_reset(step):
            reset_moments(gate.optimizer, self.moments)
        gate.scales[_USER] = self._scale(step)
        self._steps_taken[index] = step
        self._stepped.append((index, step))

    def _is_reset(self, step: int) -> bool:  # steps count from 1
        return step % self.every_n_steps == 0

    def _scale(self, step: int) -> float:
        if step < self.every_n_steps:
            return 1.0
        return rewarmup(step % self.every_n_steps, self.warmup_steps, self.warmup)

    def _detach(self) -> None:
        for gate in self._gates:
            gate.detach(user=_USER)
        self._gates.clear()


def _check(every_n_steps: int, moments: str, warmup_steps: int, warmup: str) -> None:
    if every_n_steps < 1:
        raise ValueError(f"`MomentumReset(every_n_steps=...)` must be at least 1, got {every_n_steps}.")
    if moments not in ("first", "all"):
        raise ValueError(f'`MomentumReset(moments=...)` must be "first" or "all", got {moments!r}.')
    if not 0 <= warmup_steps < every_n_steps:
        raise ValueError(
            f"`MomentumReset(warmup_steps=...)` must be at least 0 and less than `every_n_steps` ({every_n_steps}), or "
            f"the learning rate would never come back, got {warmup_steps}."
        )
    if warmup not in ("cosine", "linear"):
        raise ValueError(f'`MomentumReset(warmup=...)` must be "cosine" or "linear", got {warmup!r}.')
