# SPDX-License-Identifier: Apache-2.0
"""A run's length in samples, tokens or seconds."""

import math
import time
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning.pytorch.utilities.signature_utils import is_param_in_hook_signature
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable._lightning import progress
from lightning_stable._lightning.loggers import log_scalars, logging_step
from lightning_stable._lightning.ranks import sum_over_ranks
from lightning_stable._lightning.trainer import log_every_n_steps
from lightning_stable.callbacks.batches.batch_counts import count_samples, count_tokens
from lightning_stable.callbacks.batches.schedule_increments import profile_schedules, set_increment
from lightning_stable.schedules.arguments import number_text
from lightning_stable.schedules.profile_lr import ProfileLR

_UNITS = ("samples", "tokens", "seconds")


class TrainingBudget(Callback):
    """Ends a run after so many samples, tokens or seconds, and tells schedules that count them what a step has used.

        samples:   used += sum over ranks and micro-batches of the length of the batch's first axis
        tokens:    used += sum over ranks and micro-batches of samples x sequence length
        seconds:   used  = wall-clock time of rank 0 since training began, that of runs it was resumed from included
        used >= total   =>   the run ends, after validation

    Every `ProfileLR(unit=...)` of the same unit that is stepped after each optimizer step is moved on by what the step
    has used, and where its `total_steps` is unknown it is `total`: schedule and run end together, whatever batch size,
    sequence length, ranks and accumulation are. The last step may use more than is left. Steps and epochs are the
    Trainer's: `max_steps` and `max_epochs`, which still end a run that has not used its budget up (with a warning).

    Samples are found in the first tensor of the batch that has axes; tokens, where that is [samples, length] of
    integers or [samples, length, features]. Anything else is an error that asks for `key`. Padding counts. A batch
    without a loss (`training_step` returned None) uses nothing.

    Seconds count from `on_train_start`: what comes before (setup, sanity check) does not, validation and checkpoints
    do, as they do for a job's time limit. Rank 0 tells all others the time, once a step, so that all end after the
    same one.

    A step that `SpikeGuard` undoes, and those that it rolls back, have used no samples and no tokens: a run that is
    saved from a spike ends where one does whose loader never held the spike. Seconds are not given back; the schedule
    catches up with them in the next step.

    Logs `stability/budget_used` in `unit`s, every `Trainer(log_every_n_steps=...)` steps and at the end.

    Paper: none.

    Deviations: none.

    Args:
        total: The budget in `unit`s, over all ranks. `None` ends nothing, and only counts for schedules.
        unit: `"samples"`, `"tokens"` or `"seconds"`.
        key: Where in the batch the tensor is: a key, index or attribute, or several joined by dots. For tokens, all
            entries of the integer tensor there are counted, such as `"input_ids"`. `None` looks by itself.

    Raises:
        ValueError: If an argument is out of its bounds.
        RuntimeError: From `fit`, if a batch does not show how many samples or tokens it has, or if a checkpoint counts
            in another unit.

    Example:
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> budget = TrainingBudget(total=1_000_000, unit="tokens", key="input_ids")
        >>> trainer = Trainer(max_epochs=-1, callbacks=[budget], accelerator="cpu", **quiet)
    """

    def __init__(
        self,
        total: float | None = None,
        unit: Literal["samples", "tokens", "seconds"] = "samples",
        key: str | None = None,
    ) -> None:
        super().__init__()
        _check(total, unit, key)
        self.total = total
        self.unit: Literal["samples", "tokens", "seconds"] = unit
        self.key = key
        self._used: float = 0
        self._own = 0  # what this rank has used in the window under way
        self._of_step: float | None = None  # what the step under way uses, over all ranks
        self._batch: Any = None
        self._has_counted = False  # the batch under way
        self._schedules: list[ProfileLR] = []
        self._since: float | None = None  # while training: when the clock was last read

    @property
    def used(self) -> float:
        """What the run has used so far, in `unit`s."""
        return self._used

    # Beginning and end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start counting anew; a checkpoint is loaded after this."""
        if stage != "fit":
            return
        if self.unit != "seconds" and is_param_in_hook_signature(
            pl_module.training_step, "dataloader_iter", explicit=True
        ):
            raise RuntimeError(
                f"`TrainingBudget(unit={self.unit!r})` cannot see the batches that `training_step` fetches "
                "from a `dataloader_iter`. Use `training_step(self, batch, batch_idx)`, or count seconds."
            )
        self._used = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the schedules, and start the clock."""
        self._schedules = profile_schedules(trainer, self.unit)
        for schedule in self._schedules:
            if schedule.total_steps is None and self.total is not None:
                schedule.total_steps = self.total
        if self._used == 0:  # a checkpoint without this callback may be further
            self._used = max((schedule.position for schedule in self._schedules), default=0)
        self._forget_step()
        self._since = _now()
        self._stop_if_used_up(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Say so if the run was shorter than its budget."""
        self._leave()
        if self.total is not None and self._used < self.total and not progress.should_stop(trainer):
            rank_zero_warn(
                f"The run has ended with {number_text(self._used)} of the {number_text(self.total)} {self.unit} of "
                "`TrainingBudget` used, as `max_epochs` or `max_steps` of the Trainer was reached. Use "
                "`Trainer(max_epochs=-1)` to use all."
            )

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Stop the clock."""
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the run."""
        self._leave()
        self._schedules = []

    # One step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Keep the batch until it is known whether a step is made of it."""
        self._batch, self._has_counted = batch, False

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Count the batch; if an optimizer step follows, add up all ranks and tell schedules."""
        if self._has_counted:
            return  # by hand there may be several
        self._has_counted = True
        if self.unit != "seconds":
            self._own += self._count(self._batch)
        if not (pl_module.automatic_optimization and progress.is_accumulating(trainer)):
            self._end_window(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """A step is taken also where the last of its batches has no loss: then the others are added up here."""
        if pl_module.automatic_optimization and self._of_step is None:
            self._end_window(trainer)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """The step was taken, unless somebody has put back what was before it."""
        self._batch = None
        if pl_module.automatic_optimization and progress.is_accumulating(trainer):
            return
        if self._of_step is not None:
            self._used += self._of_step
        self._forget_step()
        self._stop_if_used_up(trainer)
        every = log_every_n_steps(trainer)
        if progress.should_stop(trainer) or (every > 0 and (logging_step(trainer) + 1) % every == 0):
            log_scalars(trainer, {"stability/budget_used": self._used})

    # The checkpoint

    def state_dict(self) -> dict[str, Any]:
        """What was used so far; of seconds, up to this very moment."""
        running = _now() - self._since if self.unit == "seconds" and self._since is not None else 0
        return {"unit": self.unit, "used": self._used + running}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from a checkpoint; or from where a rollback in mid-run went back to, which gives back no seconds."""
        unit, used = state_dict["unit"], state_dict["used"]
        if unit != self.unit:
            raise RuntimeError(
                f"The checkpoint of `TrainingBudget` counts {unit}, but `TrainingBudget(unit=...)` is {self.unit!r}. "
                f"Resume with `unit={unit!r}`."
            )
        if self.unit == "seconds" and self._since is not None:
            return
        self._used = used
        self._forget_step()

    def _count(self, batch: Any) -> int:
        try:
            found = (count_tokens if self.unit == "tokens" else count_samples)(batch, self.key)
        except KeyError as error:
            raise RuntimeError(f"`TrainingBudget(key={self.key!r})`: {error.args[0]}.") from None
        if found is None:
            place = "in the batch" if self.key is None else f"at `key={self.key!r}` of the batch"
            wanted = "an integer tensor" if self.unit == "tokens" else "a tensor with axes"
            raise RuntimeError(
                f"`TrainingBudget(unit={self.unit!r})` does not find {self.unit} to count {place} ("
                f"{_described(batch)}). Name {wanted} by `TrainingBudget(key=...)`."
            )
        return found

    def _end_window(self, trainer: Trainer) -> None:
        """Add up all ranks, and tell schedules."""
        self._of_step = self._read_clock(trainer) if self.unit == "seconds" else self._add_up(trainer)
        for schedule in self._schedules:
            set_increment(schedule, max(0, self._used + self._of_step - schedule.position))

    def _add_up(self, trainer: Trainer) -> int:
        (total,) = sum_over_ranks(trainer, [self._own])
        return int(total)

    def _read_clock(self, trainer: Trainer) -> float:
        """Seconds since the last reading, by the clock of rank 0; they are used whatever becomes of the step."""
        now = _now()
        elapsed = now - (now if self._since is None else self._since)
        (elapsed,) = sum_over_ranks(trainer, [elapsed if trainer.is_global_zero else 0.0])
        self._since = now
        self._used += elapsed
        return 0.0

    def _stop_if_used_up(self, trainer: Trainer) -> None:
        if self.total is not None and self._used >= self.total:
            trainer.should_stop = True

    def _forget_step(self) -> None:
        self._own, self._of_step = 0, None

    def _leave(self) -> None:
        if self.unit == "seconds":
            self._used = self.state_dict()["used"]
        self._since = None
        self._batch = None
        self._forget_step()


def _described(batch: Any) -> str:
    if isinstance(batch, Tensor):
        return f"a tensor of {str(batch.dtype).removeprefix('torch.')} {tuple(batch.shape)}"
    names = f" with {', '.join(map(repr, batch))}" if isinstance(batch, dict) else ""
    return f"a {type(batch).__name__}{names}"


def _now() -> float:
    return time.monotonic()


def _check(total: float | None, unit: str, key: str | None) -> None:
    if unit not in _UNITS:
        units = ", ".join(f'"{one}"' for one in _UNITS)
        raise ValueError(
            f"`TrainingBudget(unit=...)` must be one of {units}, got {unit!r}. Steps and epochs are the Trainer's: "
            "`max_steps`, `max_epochs`."
        )
    is_number = isinstance(total, int | float) and not isinstance(total, bool)
    if total is not None and not (is_number and 0 < total < math.inf):
        raise ValueError(f"`TrainingBudget(total=...)` must be above 0 and finite, got {total!r}.")
    if total is not None and unit != "seconds" and total != int(total):
        raise ValueError(f"`TrainingBudget(total=...)` must be a whole number of {unit}, got {total!r}.")
    if key is not None and (unit == "seconds" or not key):
        raise ValueError(
            f"`TrainingBudget(key=...)` names a tensor whose {unit} are counted, got {key!r}."
            if unit != "seconds"
            else f"`TrainingBudget(key=...)` must be None for seconds, which no batch holds, got {key!r}."
        )
