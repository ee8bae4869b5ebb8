# SPDX-License-Identifier: Apache-2.0
"""Several runs that take turns in one process, so that whatever else the machine does slows all of them alike."""

import contextlib
import io
import logging
import random
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping
from statistics import quantiles
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_stable.bench.report import show_progress

CYCLE = 50
"""Steps a measurement is averaged over: everything that is done every 50 steps happens once in it."""

_TURN = 10  # steps between two changes of turn: short against the drift of a machine, long against cold caches

Make = Callable[[], tuple[LightningModule, Iterable[Any], list[Callback]]]
"""Makes what a run is made of: a model, its training batches, and the callbacks to be measured."""


class InterleavedRun(Callback):
    """One run in its own thread, which trains only while it has its turn.

    Args:
        make: Makes model, batches and callbacks.
        steps: How many steps it will be given.

    Example:
        >>> InterleavedRun.__name__  # see `seconds_per_step`
        'InterleavedRun'
    """

    def __init__(self, make: Make, steps: int) -> None:
        self.seconds: list[float] = []
        self._make = make
        self._steps = steps
        self._turn, self._turn_over = threading.Semaphore(0), threading.Semaphore(0)
        self._began = 0.0
        self._error: BaseException | None = None
        self._thread = threading.Thread(target=self._fit, daemon=True)

    def start(self) -> None:
        """Build everything and run up to the first step."""
        self._thread.start()
        self._wait()

    def take_turn(self) -> None:
        """Train for the steps of one turn, and note how long that took."""
        self._turn.release()
        self._wait()

    def finish(self) -> None:
        """Run to the end."""
        self._turn.release()
        self._thread.join()
        if self._error is not None:
            raise self._error

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Hand the turn over where it ends; the waiting is not measured."""
        if batch_idx % _TURN:
            return
        if batch_idx:
            self.seconds.append(time.perf_counter() - self._began)
        self._turn_over.release()
        self._turn.acquire()
        self._began = time.perf_counter()

    def _wait(self) -> None:
        self._turn_over.acquire()
        if self._error is not None:
            raise self._error

    def _fit(self) -> None:
        try:
            model, batches, callbacks = self._make()
            with tempfile.TemporaryDirectory() as folder:
                self._trainer(callbacks, folder).fit(model, batches)
        except BaseException as error:
            self._error = error
        self._turn_over.release()

    def _trainer(self, callbacks: list[Callback], folder: str) -> Trainer:
        return Trainer(
            accelerator="cpu",
            devices=1,
            max_epochs=1,
            limit_train_batches=self._steps + 1,  # the last one ends the measurement of those before
            callbacks=[*callbacks, self],
            default_root_dir=folder,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )


@contextlib.contextmanager
def silence() -> Iterator[None]:
    """Within it, runs say nothing: not Lightning about its loaders, and not the guards their summaries.

    Example:
        >>> with silence():
        ...     print("summary")
    """
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
            warnings.simplefilter("ignore")
            yield
    finally:
        logger.setLevel(level)


def seconds_per_step(makes: Mapping[str, Make], rounds: int, seed: int = 0) -> dict[str, list[float]]:
    """Train all of `makes` at once, in turns of ten steps, and return the mean seconds a step in every round.

    A round is 50 steps of each run. In every turn the order is drawn anew. The first round is not counted.

    Args:
        makes: From the run's name to what makes it.
        rounds: How many are counted, at least 1.
        seed: Of the order.

    Example:
        >>> import torch
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> def make():
        ...     return BoringModel(), torch.utils.data.DataLoader(torch.zeros(120, 32)), []
        >>> {name: len(seconds) for name, seconds in seconds_per_step({"bare": make}, rounds=1).items()}
        {'bare': 1}
    """
    runs = {name: InterleavedRun(make, (rounds + 1) * CYCLE) for name, make in makes.items()}
    order, draw = list(runs.values()), random.Random(seed)
    with silence():
        for run in order:
            run.start()
        try:
            for turn in range((rounds + 1) * CYCLE // _TURN):
                rounds_done = turn * _TURN // CYCLE
                show_progress(f"round {rounds_done} of {rounds}" + " (warming up)" * (rounds_done == 0))
                draw.shuffle(order)
                for run in order:
                    run.take_turn()
            for run in order:
                run.finish()
        finally:
            show_progress(None)
    return {name: _means(run.seconds)[1:] for name, run in runs.items()}


def ratios(seconds: Iterable[float], baseline: Iterable[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the ratios, round by round.

    Args:
        seconds: Of the run, one number a round.
        baseline: Of the run it is compared with, in the same rounds.

    Example:
        >>> ratios([1.0, 2.2, 3.0], [1.0, 2.0, 3.0])
        (1.0, 1.0, 1.1)
    """
    each = [ours / theirs for ours, theirs in zip(seconds, baseline, strict=True)]
    low, median, high = quantiles(each, n=4) if len(each) > 1 else each * 3
    return low, median, high


def _means(turns: list[float]) -> list[float]:
    per_round = CYCLE // _TURN
    return [sum(turns[i : i + per_round]) / CYCLE for i in range(0, len(turns), per_round)]
