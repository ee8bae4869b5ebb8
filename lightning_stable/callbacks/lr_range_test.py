# SPDX-License-Identifier: Apache-2.0
"""Find out, before a run begins, which learning rates it can bear."""

import math
import time
from pathlib import Path
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_stable._lightning import data_fetcher
from lightning_stable._lightning.loggers import can_show, log_figure
from lightning_stable._lightning.trainer import callbacks_of
from lightning_stable.callbacks.population_based_training import PopulationBasedTraining
from lightning_stable.callbacks.range_test.curve import RangeCurve, grid_of
from lightning_stable.callbacks.range_test.report import ProgressNotes, csv_of, print_table, rows_of
from lightning_stable.callbacks.range_test.sides import RangeSides, RangeTestResult, best_of
from lightning_stable.callbacks.range_test.trial_steps import TrialSteps
from lightning_stable.files import write_atomically

_FILE = "lr_range_test"


class LRRangeTest(Callback):
    """Tries learning rates from small to large before the first step, recommends a range, and undoes all of it.

        sweep:  one optimizer step with each rate eta_1 < ... < eta_n of the grid, until the loss diverges:
                not finite, or smoothed loss > diverge_factor * max(lowest smoothed loss, first loss / 100)
        edge:   K steps with one rate, from the start again; it holds if the loss ends no worse than on the same
                batches without learning (the mean of the last K/4 is at most 1.02 times that), and if it was finite
                and its running mean never above diverge_factor times that without learning
        max_lr  = the largest rate below the sweep's divergence that holds, found by halving
        min_lr  = max_lr / 10

    A sweep alone is late, by as many rates as a loss needs to grow visibly: on a quadratic the sharpest direction has
    been learned to zero just before it becomes unstable. With one rate from the start it grows by
    (eta * lambda_max - 1)^2 a step, and K is so large that a millionth of the loss would show one bin above the edge:
    (2 r - 1)^(2 K) = 10^6 with r the ratio of neighbouring rates; 21 steps by default, more on finer grids. So with
    full-batch gradient descent on a quadratic max_lr is 2 / lambda_max within one bin, unless the start has less than
    that along the sharpest direction. With momentum the edge is where the loss overshoots by diverge_factor, which is
    before it is unstable for good.

    Paper: Smith, "A disciplined approach to neural network hyper-parameters: Part 1" (2018), and Smith, "Cyclical
    Learning Rates for Training Neural Networks" (WACV 2017).

    Deviations: there the maximum is read off the curve by eye; the search for the edge is ours. The rate of the
    steepest descent, `steepest_lr`, is none of Smith's recommendations, but many a tool's: it is given beside them, as
    something between the two for a constant rate. The maximum is for a schedule that comes down from it: with two
    networks on scikit-learn's digits, SGD and AdamW, three of four trained well with max_lr as the peak of OneCycleLR,
    and one with twice that; as a constant rate a tenth to a third of it was good.

    Momentum and weight decay are tested as Smith does, by short range tests, one for each value from the same start:
    recommended is the value that allows the largest rate, and among several such the one with the lowest smoothed loss.

    Everything is tried on the data, module and optimizer of the run, with its precision, accumulation and clipping
    (`configure_gradient_clipping`), and on all ranks alike, with the mean of their losses. All sides see the same
    batches and random numbers, from copies of the loaders, which take memory for a moment: arrays of 64 MiB and more
    are shared. Afterwards the run is, to the bit, what it would have been. Counters, lists, tensors, generators and
    objects of such that a step changes in the module or the data module are put back; other objects of yours (with
    files, locks or modules of their own, see `PlainAttributes`), and what is outside of both, are not. No callback,
    logger, schedule or `optimizer_step` of the module is called by a step that is tried: what they do to gradients is
    not part of the test.

    The rate of an optimizer is that of its group with the largest base rate; others keep their ratio to it. With
    `OneCycleLR` and `CyclicLR` the base rate is the peak, their `max_lr`. The test runs once in a fit, before its first
    step; not in a resumed one, nor under `fast_dev_run`.

    The result is in the attribute `result`, in a printed table, in `lr_range_test.csv` and `lr_range_test.png` (with
    matplotlib), and as a figure in TensorBoard.

    Args:
        min_lr: The smallest rate of the grid. Default: far below what any network needs.
        max_lr: The largest one.
        steps: How many rates the grid has, 3 at least; the steps of a sweep. The search for the edge takes
            about 150 more, and each value of momentum and weight decay as many again.
        spacing: `"exponential"`, or `"linear"` as in the papers; with the latter the edge takes many steps.
        momentum: Values to be tested, in [0, 1): of `momentum`, or the first of `betas`. Smith: 0.8 to 0.99.
        weight_decay: Values to be tested, for the groups that have any. Smith: 0, 1e-5, 1e-4, 1e-3.
        diverge_factor: How many times the lowest loss is divergence. Default: fast.ai's 4.
        smoothing: Of the running mean of the losses, in [0, 1). Default: of five losses or so.
        apply: Which of the rates becomes the base rate of the run, for its schedules, too: `"max_lr"`, `"min_lr"`,
            `"steepest_lr"`; `None` leaves the run as it was. It must come before a `SpikeGuard` or a
            `PopulationBasedTraining` then.
        path: The folder of the files. Default: the `log_dir` of the Trainer if it has a logger, else none are written.

    Raises:
        ValueError: If an argument is out of its bounds; from `fit`, under manual optimization, with a `training_step`
            that takes a `dataloader_iter`, with an optimizer without rates, with data that keep their own position and
            cannot be copied, if no rate holds, or with `apply` after a callback that keeps rates.
        RuntimeError: From `fit`, with a strategy other than DDP on several ranks.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(callbacks=[LRRangeTest(momentum=[0.8, 0.9, 0.95])], accelerator="cpu", **quiet)
    """

    def __init__(
        self,
        min_lr: float = 1e-7,
        max_lr: float = 10.0,
        steps: int = 100,
        spacing: Literal["exponential", "linear"] = "exponential",
        momentum: list[float] | None = None,
        weight_decay: list[float] | None = None,
        diverge_factor: float = 4.0,
        smoothing: float = 0.8,
        apply: Literal["max_lr", "min_lr", "steepest_lr"] | None = None,
        path: str | None = None,
    ) -> None:
        super().__init__()
        _check_rates(min_lr, max_lr, steps, spacing)
        _check_values("momentum", momentum, below=1.0)
        _check_values("weight_decay", weight_decay, below=math.inf)
        _check_losses(diverge_factor, smoothing, apply)
        self.min_lr, self.max_lr, self.steps = min_lr, max_lr, steps
        self.spacing: Literal["exponential", "linear"] = spacing
        self.momentum, self.weight_decay = momentum, weight_decay
        self.diverge_factor, self.smoothing = diverge_factor, smoothing
        self.apply: Literal["max_lr", "min_lr", "steepest_lr"] | None = apply
        self.path = path
        self.result: RangeTestResult | None = None
        self._is_due = False

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot be tested before anything is loaded."""
        if stage != "fit":
            return
        _refuse(trainer, pl_module)
        if self.apply is not None:
            self._refuse_order(trainer)

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Decide whether there is anything to do."""
        fast: bool = trainer.fast_dev_run  # pyright: ignore[reportAttributeAccessIssue]  # set at run time
        resumed = trainer.ckpt_path is not None or trainer.global_step > 0
        self._is_due = not fast and not resumed
        if resumed and not fast:
            rank_zero_info("LRRangeTest: not run, as this fit goes on from an earlier step.")

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Run the test in front of the first step, when every other callback and the module are ready for it."""
        if not self._is_due:
            return
        self._is_due = False
        if data_fetcher.hands_out_iterators(trainer):
            raise ValueError(
                "`LRRangeTest` needs a `training_step` that takes a batch; this one takes a `dataloader_iter` and"
                " fetches for itself. Use `training_step(self, batch, batch_idx)`."
            )
        began = time.perf_counter()
        trial = TrialSteps(trainer, pl_module, self)
        try:
            self.result, rates = self._test(trainer, trial)
        finally:
            trial.put_back()
        self._report(trainer, self.result, time.perf_counter() - began)
        if self.apply is not None:
            self._apply(trainer, self.result, rates)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """What was due is so no more."""
        self._is_due = False

    def _test(self, trainer: Trainer, trial: TrialSteps) -> tuple[RangeTestResult, RangeSides]:
        grid = grid_of(self.min_lr, self.max_lr, self.steps, self.spacing)
        sides = RangeSides(trial, grid, self.diverge_factor, self.smoothing, self.spacing == "exponential")
        count = 1 + len(self.momentum or []) + len(self.weight_decay or [])
        if getattr(trainer, "progress_bar_callback", None) is not None:
            sides.said = ProgressNotes(sides.most_steps(count))
        curve = sides.run()
        if curve.largest is None:
            raise ValueError(_nothing_holds(curve, self.min_lr))
        momentum = {value: sides.run(momentum=value) for value in self.momentum or []}
        weight_decay = {value: sides.run(weight_decay=value) for value in self.weight_decay or []}
        result = RangeTestResult(
            rates=curve.rates,
            losses=curve.losses,
            smoothed=curve.smoothed,
            max_lr=curve.largest,
            min_lr=curve.largest / 10,
            steepest_lr=curve.steepest,
            diverged=curve.diverged,
            momentum=best_of(momentum),
            weight_decay=best_of(weight_decay),
            of_momentum=momentum,
            of_weight_decay=weight_decay,
            steps=sides.taken,
        )
        return result, sides

    def _report(self, trainer: Trainer, result: RangeTestResult, seconds: float) -> None:
        folder = self.path or (trainer.log_dir if trainer.loggers else None)  # of all ranks: `log_dir` is a broadcast
        if not trainer.is_global_zero:
            return
        rows = [*rows_of(result), ("seconds", f"{seconds:.1f}")]
        png = self._picture(trainer, result, wanted=folder is not None)
        if folder is not None:
            rows += _write(Path(folder), csv_of(result), png)
        print_table(rows)

    def _picture(self, trainer: Trainer, result: RangeTestResult, wanted: bool) -> bytes | None:
        """The PNG; also to the loggers that can show it."""
        if not wanted and not can_show(trainer, "figure"):
            return None
        try:
            from lightning_stable.callbacks.range_test.picture import draw, png_of
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            rank_zero_info("LRRangeTest: no picture, it needs matplotlib. pip install 'lightning-stable[recipes]'")
            return None
        figure = draw(result, logarithmic=self.spacing == "exponential")
        log_figure(trainer, "stability/lr_range_test", figure)
        return png_of(figure)

    def _apply(self, trainer: Trainer, result: RangeTestResult, sides: RangeSides) -> None:
        assert self.apply is not None
        rate: float | None = getattr(result, self.apply)
        if rate is None:
            rank_zero_warn(
                "LRRangeTest: the loss never fell, so there is no `steepest_lr`. The run keeps its own rate."
            )
            return
        before = sides.rates.base
        sides.rates.make_base(rate)
        rank_zero_info(f"LRRangeTest: the base rate of the run is {rate:.3g} now, and was {before:.3g}")

    def _refuse_order(self, trainer: Trainer) -> None:
        callbacks = callbacks_of(trainer)
        before = [type(one).__name__ for one in callbacks[: callbacks.index(self)] if _keeps_rates(one)]
        if before:
            names = ", ".join(f"{name}(...)" for name in ["LRRangeTest", *before])
            raise ValueError(
                f"`LRRangeTest(apply=...)` must come before `{before[0]}`, which has kept the old rate by then, and may"
                f" go back to it. Use `callbacks=[{names}]`."
            )


def _keeps_rates(callback: Callback) -> bool:
    """Whether it has a copy of the optimizer's groups in front of the first step, to go back to."""
    is_guard = getattr(callback, "judges_gradients", False)  # the guards have it, which are on this floor, too
    return is_guard or isinstance(callback, PopulationBasedTraining)


def _write(folder: Path, table: bytes, png: bytes | None) -> list[tuple[str, str]]:
    """Write the files; returns lines for the table that say where they are."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
        write_atomically(folder / f"{_FILE}.csv", table)
        if png is not None:
            write_atomically(folder / f"{_FILE}.png", png)
    except OSError as error:
        rank_zero_warn(
            f"LRRangeTest cannot write to {folder} ({error.strerror or error}). The run goes on; the result is printed,"
            " and in the attribute `result`. Choose another folder with `path`."
        )
        return []
    return [("table", str(folder / f"{_FILE}.csv")), *([("picture", str(folder / f"{_FILE}.png"))] if png else [])]


def _nothing_holds(curve: RangeCurve, min_lr: float) -> str:
    if not curve.losses:
        return (
            "`LRRangeTest` has nothing to test: the training loss is not finite before the first step, or"
            " `training_step` returns None."
        )
    return (
        f"`LRRangeTest(min_lr={min_lr:g})` found no rate that holds: the loss rises with the smallest one, too. Lower"
        " `min_lr`, or look for what is wrong with the loss or the gradients."
    )


def _refuse(trainer: Trainer, pl_module: LightningModule) -> None:
    name = type(pl_module).__name__
    if not pl_module.automatic_optimization:
        raise ValueError(
            f"`LRRangeTest` is for automatic optimization, got `{name}.automatic_optimization = False`: it cannot set"
            " the rates of steps that `training_step` takes itself. Leave it out."
        )
    strategy = type(trainer.strategy).__name__
    if trainer.strategy.handles_gradient_accumulation:
        raise RuntimeError(f"`LRRangeTest` cannot undo a step of `{strategy}`, which steps by itself. Leave it out.")
    if trainer.world_size > 1 and not isinstance(trainer.strategy, DDPStrategy):
        raise RuntimeError(
            f"`LRRangeTest` works on one rank, or with DDP, got `{strategy}` with {trainer.world_size} ranks. Test the"
            ' rates with `Trainer(strategy="ddp")` or `Trainer(devices=1)`, and give the run what they say.'
        )
    if sum(isinstance(callback, LRRangeTest) for callback in callbacks_of(trainer)) > 1:
        raise ValueError("`Trainer(callbacks=...)` must hold one `LRRangeTest` only.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _check_rates(min_lr: float, max_lr: float, steps: int, spacing: str) -> None:
    if not (_is_number(min_lr) and min_lr > 0):
        raise ValueError(f"`LRRangeTest(min_lr=...)` must be a finite number above 0, got {min_lr}.")
    if not (_is_number(max_lr) and max_lr > min_lr):
        raise ValueError(
            f"`LRRangeTest(max_lr=...)` must be a finite number above `min_lr` ({min_lr:g}), got {max_lr}."
        )
    if not isinstance(steps, int) or isinstance(steps, bool) or steps < 3:
        raise ValueError(f"`LRRangeTest(steps=...)` must be a whole number of at least 3, got {steps}.")
    if spacing not in ("exponential", "linear"):
        raise ValueError(f'`LRRangeTest(spacing=...)` must be "exponential" or "linear", got {spacing!r}.')


def _check_values(name: str, values: list[float] | None, below: float) -> None:
    if values is None:
        return
    if not isinstance(values, list | tuple) or not values or len(set(values)) < len(values):
        raise ValueError(f"`LRRangeTest({name}=...)` must be None or a list of different values, got {values}.")
    for value in values:
        if not (_is_number(value) and 0 <= value < below):
            bounds = f"at least 0 and below {below:g}" if math.isfinite(below) else "finite and at least 0"
            raise ValueError(f"`LRRangeTest({name}=...)` must have values that are {bounds}, got {value}.")


def _check_losses(diverge_factor: float, smoothing: float, apply: str | None) -> None:
    if not (_is_number(diverge_factor) and diverge_factor > 1):
        raise ValueError(f"`LRRangeTest(diverge_factor=...)` must be a finite number above 1, got {diverge_factor}.")
    if not (_is_number(smoothing) and 0 <= smoothing < 1):
        raise ValueError(f"`LRRangeTest(smoothing=...)` must be at least 0 and below 1, got {smoothing}.")
    if apply not in (None, "max_lr", "min_lr", "steepest_lr"):
        raise ValueError(f'`LRRangeTest(apply=...)` must be None, "max_lr", "min_lr" or "steepest_lr", got {apply!r}.')
