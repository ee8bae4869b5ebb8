# SPDX-License-Identifier: Apache-2.0
"""A process that makes one run after another, so that imports and data are paid for once. What it says is JSON."""

import json
import os
import signal
import sys
import threading
import time
import traceback
from importlib import import_module
from multiprocessing import parent_process
from multiprocessing.connection import Connection, wait
from numbers import Real
from typing import Any

from lightning_stable.studies.engine.study import Study, Trial

_THREADS = ("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS")


def load_study(path: str) -> Study:
    """Make the study that `module:Class` names.

    Args:
        path: Such as `lightning_stable.studies.budget.study:BudgetStudy`.

    Example:
        >>> load_study("lightning_stable.studies.engine.study:Trial")
        Traceback (most recent call last):
            ...
        TypeError: lightning_stable.studies.engine.study:Trial is no Study
    """
    module, _, name = path.partition(":")
    study = getattr(import_module(module), name)
    if not issubclass(study, Study):
        raise TypeError(f"{path} is no Study")
    return study()


def make_run(study: Study, trial: Trial) -> dict[str, Any]:
    """Make one run, and tell what came out or went wrong as plain values.

    Args:
        study: Whose.
        trial: Which one.

    Raises:
        SystemExit: If SIGTERM came while Lightning was training: the run has not failed, it was broken off.

    Example:
        >>> class Toy:
        ...     objective = "loss"
        ...     def run(self, trial):
        ...         return {"loss": 1 / trial.seed}
        >>> make_run(Toy(), Trial("a", seed=2))["numbers"]
        {'loss': 0.5}
        >>> make_run(Toy(), Trial("a", seed=0))["error"]
        'ZeroDivisionError: division by zero'
    """
    begin = time.monotonic()
    try:
        answer: dict[str, Any] = {"numbers": _checked(study.run(trial), study.objective)}
    except (Exception, SystemExit) as error:
        if _is_sigterm(error):
            raise SystemExit(128 + signal.SIGTERM) from error
        answer = {"error": f"{type(error).__name__}: {error}".strip()}
        traceback.print_exc()
    return {**answer, "seconds": time.monotonic() - begin}


def work(connection: Connection, study_path: str, threads: int, log: str) -> None:
    """What a worker process does: runs, until nobody asks for more.

    Args:
        connection: Where the keys of trials come from, and results go to.
        study_path: `module:Class`.
        threads: How many each run may use.
        log: A file for whatever the runs print.
    """
    signal.signal(
        signal.SIGINT, signal.SIG_IGN
    )  # Ctrl-C in a terminal reaches all processes; ours is told by the first
    threading.Thread(target=_end_with_parent, daemon=True).start()
    _print_to(log)
    os.environ.update(dict.fromkeys(_THREADS, str(threads)))  # read when torch is imported
    study = load_study(study_path)
    while True:
        try:
            key = connection.recv_bytes().decode()
        except EOFError:
            return
        answer = make_run(study, Trial.from_key(key))
        sys.stdout.flush()
        sys.stderr.flush()
        connection.send_bytes(json.dumps(answer).encode())


def _is_sigterm(error: BaseException) -> bool:
    """Whether Lightning, whose `fit` takes over SIGTERM, has raised this in the place of dying of it."""
    lightning = sys.modules.get("lightning.pytorch.utilities.exceptions")  # unless it is there, it has raised nothing
    return lightning is not None and isinstance(error, lightning.SIGTERMException)


def _end_with_parent() -> None:
    """A run that nobody waits for any longer must not go on; even if its parent was killed."""
    parent = parent_process()
    if parent is not None:
        wait([parent.sentinel])
        os._exit(1)


def _print_to(log: str) -> None:
    target = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    for stream in (1, 2):
        os.dup2(target, stream)
    os.close(target)


def _checked(numbers: Any, objective: str) -> dict[str, float]:
    if not isinstance(numbers, dict) or objective not in numbers:
        raise TypeError(f"a run must return numbers by name, one of them {objective!r}; it returned {numbers!r:.200}")
    wrong = {name: value for name, value in numbers.items() if isinstance(value, bool) or not isinstance(value, Real)}
    if wrong:
        raise TypeError(f"a run must return numbers, it returned {wrong!r:.200}")
    return {str(name): float(value) for name, value in numbers.items()}
