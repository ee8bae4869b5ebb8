# SPDX-License-Identifier: Apache-2.0
"""The worker processes of one machine: they are started, given runs, listened to, and replaced if they die."""

import json
import multiprocessing
from collections.abc import Iterator
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from types import TracebackType
from typing import Any

from lightning_stable.studies.engine.study import Trial
from lightning_stable.studies.engine.worker import work

_END_SECONDS = 5.0  # for a worker that is told to end, before it is killed


@dataclass(frozen=True)
class Done:
    """What a worker has said about a run, or that it died of it.

    Args:
        number: The run's, as it was given with it.
        trial: Which one.
        answer: `numbers` or `error`, and `seconds`; None if the worker died.
        exit_code: Of the worker that died; a negative one is the signal.

    Example:
        >>> Done(3, Trial("rex"), {"numbers": {"error": 0.1}, "seconds": 2.0}).number
        3
    """

    number: int
    trial: Trial
    answer: dict[str, Any] | None
    exit_code: int | None = None


class _Worker:
    def __init__(self, study_path: str, threads: int, log: Path) -> None:
        context = multiprocessing.get_context("spawn")  # a fork of a process with threads may hang
        self.connection: Connection
        self.connection, theirs = context.Pipe()
        arguments = (theirs, study_path, threads, str(log))
        self.process: BaseProcess = context.Process(target=work, args=arguments, daemon=True)
        self.process.start()
        theirs.close()  # so that the end of the worker is the end of the pipe
        self.run: tuple[int, Trial] | None = None


class Crew:
    """Worker processes that each make one run at a time.

    Args:
        study_path: `module:Class`, which each worker imports for itself.
        workers: How many processes.
        threads: How many threads torch uses in each.
        log: A file for whatever the runs print.

    Raises:
        ValueError: If there is less than one worker.

    Example:
        >>> Crew("module:Class", workers=0, threads=1, log=Path("workers.log"))
        Traceback (most recent call last):
            ...
        ValueError: `--workers` must be at least 1, got 0.
    """

    def __init__(self, study_path: str, workers: int, threads: int, log: Path) -> None:
        if workers < 1:
            raise ValueError(f"`--workers` must be at least 1, got {workers}.")
        self._arguments = (study_path, threads, log)
        self._size = workers
        self._workers: list[_Worker] = []

    def __enter__(self) -> "Crew":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.end()

    @property
    def has_idle(self) -> bool:
        """Whether a run can be given to somebody."""
        return len(self.running) < self._size

    @property
    def running(self) -> list[int]:
        """The numbers of the runs that are being made."""
        return [worker.run[0] for worker in self._workers if worker.run is not None]

    def give(self, number: int, trial: Trial) -> None:
        """Let a worker make a run; one is started if all others have something to do.

        Args:
            number: What the run is called in `Done`.
            trial: Which one.
        """
        worker = next((worker for worker in self._workers if worker.run is None), None)
        if worker is None:
            worker = _Worker(*self._arguments)
            self._workers.append(worker)
        worker.run = (number, trial)
        try:
            worker.connection.send_bytes(trial.key.encode())
        except OSError:  # it has died while it had nothing to do: `listen` hears of it
            return

    def listen(self, seconds: float) -> Iterator[Done]:
        """What has been said, waiting for it no longer than so many seconds.

        Args:
            seconds: How long.
        """
        ready = wait([worker.connection for worker in self._workers], timeout=seconds)
        for worker in [worker for worker in self._workers if worker.connection in ready]:
            run = worker.run
            try:
                answer: dict[str, Any] | None = json.loads(worker.connection.recv_bytes())
                worker.run = None
            except (EOFError, OSError):
                answer = None
                self._workers.remove(worker)
                worker.process.join(_END_SECONDS)
            if run is not None:
                yield Done(*run, answer, worker.process.exitcode)

    def end(self) -> None:
        """End all workers, whatever they are doing."""
        for worker in self._workers:
            worker.connection.close()
            if worker.run is not None:
                worker.process.terminate()
        for worker in self._workers:
            worker.process.join(_END_SECONDS)
            if worker.process.is_alive():
                worker.process.kill()
                worker.process.join()
        self._workers.clear()
