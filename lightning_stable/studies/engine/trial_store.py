# SPDX-License-Identifier: Apache-2.0
"""The runs of a study in an Optuna storage, where any number of processes and machines share them.

Nothing is enqueued: whoever wants to make a run creates its trial, then looks whether another one was earlier. Optuna
numbers trials in the order of their commits on every database, so that the earliest is the same for all who look; the
others withdraw. A run that breaks off leaves a trial that no longer counts, and the run is free again.

Machines need a database server for that. An SQLite file is for the processes of one machine: its write-ahead log is in
memory that they share, which no network share has.
"""

import logging
import socket
import sqlite3
import time
import warnings
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from os import getpid
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar
from urllib.parse import quote

from lightning_stable.studies.engine.outcome import Result
from lightning_stable.studies.engine.study import Trial

if TYPE_CHECKING:
    from optuna.storages import BaseStorage
    from optuna.trial import TrialState

BEAT_SECONDS = 5.0
PATIENCE_SECONDS = 45.0  # several beats, and a database that is slow for a while
_TRIES = 6
_PLAIN = "/\\: +,;=@&$~()[]'!"  # what may stand in the path of a URL of SQLAlchemy as it is
_LOCK_SECONDS = 60.0  # how long SQLite waits for another writer
Status = Literal["free", "running", "complete", "failed"]
T = TypeVar("T")


class StorageRefused(ValueError):
    """A storage that cannot be opened.

    Example:
        >>> str(StorageRefused("no such database"))
        'no such database'
    """


@dataclass
class _Attempt:
    """One trial of the storage: a run that was begun."""

    number: int
    retry: int  # 0, and one more each time that a failed run is made again
    state: "TrialState"
    attributes: Mapping[str, Any]

    @property
    def counts(self) -> bool:
        """Whether it is a run: not if it was withdrawn, nor if it broke off."""
        return self.state.name in ("RUNNING", "COMPLETE") or (self.state.name == "FAIL" and "error" in self.attributes)


class TrialStore:
    """The runs of one study: which are free, which are being made, what came out of the others.

    Args:
        url: Of the database, such as `sqlite:///runs.db` or `postgresql://user@host/name`.
        study: What the study is called there; runs of studies with other names do not meet.
        clock: Seconds, from any beginning.

    Raises:
        StorageRefused: If there is no such database, or it is none.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     store = TrialStore(sqlite_url(Path(folder, "trials.db")), "toy v1")
        ...     number = store.claim(Trial("rex"))
        ...     store.complete(number, {"error": 0.1}, "error", seconds=2.0)
        ...     store.refresh()
        ...     store.status(Trial("rex")), store.result(Trial("rex")).numbers
        True
        ('complete', {'error': 0.1})
    """

    def __init__(self, url: str, study: str, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._storage, self._study_id = _open(url, study)
        self._attempts: dict[str, list[_Attempt]] = {}
        self._mine: dict[int, int] = {}  # from the numbers of the trials we run to how often we have said so
        self._beats: dict[int, tuple[object, float]] = {}  # others' last beat, and when we saw it change
        self._next_beat = 0.0
        self._fresh = False  # nothing was written here since the last look
        self.refresh()

    def refresh(self) -> None:
        """See what others have done, and set free what nobody runs any longer."""
        self._read()
        silent = self._silent()
        for number in silent:
            self._finish(number, "FAIL")
        if silent:
            self._read()

    def status(self, trial: Trial) -> Status:
        """How far the run is, as of the last `refresh` or `claim`.

        Args:
            trial: Which one.
        """
        attempt = self._attempt(trial)
        if attempt is None:
            return "free"
        names: dict[str, Status] = {"RUNNING": "running", "COMPLETE": "complete"}
        return names.get(attempt.state.name, "failed")

    def result(self, trial: Trial) -> Result | None:
        """What came out of a run; None while nothing has.

        Args:
            trial: Which one.
        """
        attempt = self._attempt(trial)
        if attempt is None or attempt.state.name == "RUNNING":
            return None
        known = attempt.attributes
        return Result(trial, known.get("numbers", {}), known.get("error"), known.get("seconds", float("nan")))

    def claim(self, trial: Trial, retry_failed: bool = False) -> int | None:
        """Take a run that nobody else makes or has made; None if somebody was earlier.

        Args:
            trial: Which one.
            retry_failed: Whether a run that failed is free, too.

        Returns:
            A number to finish it by.
        """
        from optuna.trial import TrialState, create_trial

        if not self._fresh:
            self._read()
        before = self._attempt(trial)
        if before is not None and not (retry_failed and self.status(trial) == "failed"):
            return None
        retry = 0 if before is None else before.retry + 1
        attributes = {"key": trial.key, "retry": retry, "owner": f"{socket.gethostname()}:{getpid()}", "beat": 0}
        template = create_trial(state=TrialState.RUNNING, user_attrs=attributes)
        trial_id = _patiently(lambda: self._storage.create_new_trial(self._study_id, template))
        number = self._storage.get_trial(trial_id).number
        self._mine[number] = 0
        self._read()
        same = [attempt for attempt in self._attempts[trial.key] if attempt.counts and attempt.retry == retry]
        if min(attempt.number for attempt in same) != number:
            self._finish(number, "PRUNED")
            return None
        return number

    def complete(self, number: int, numbers: Mapping[str, float], objective: str, seconds: float) -> bool:
        """Keep what came out of a run; False if others took it for dead in the meantime, and make it again.

        Args:
            number: As `claim` returned it.
            numbers: What came out.
            objective: Which of them is the trial's value.
            seconds: How long it took.
        """
        value = numbers[objective]
        value = value if value == value else float("inf")  # no database has a NaN
        return self._finish(number, "COMPLETE", [value], numbers=dict(numbers), seconds=seconds)

    def fail(self, number: int, error: str, seconds: float) -> bool:
        """Keep that a run failed.

        Args:
            number: As `claim` returned it.
            error: What was raised.
            seconds: How long it took.
        """
        return self._finish(number, "FAIL", error=error, seconds=seconds)

    def set_free(self, number: int) -> bool:
        """Give back a run that broke off, for anybody to make.

        Args:
            number: As `claim` returned it.
        """
        return self._finish(number, "FAIL")

    def set_all_free(self) -> None:
        """Give back whatever was claimed here and is not finished; what cannot be written is found to be dead later."""
        from optuna.exceptions import OptunaError

        with suppress(OptunaError):
            for number in list(self._mine):
                self.set_free(number)

    def beat(self) -> None:
        """Say, now and then, that the runs which were claimed here are still being made."""
        from optuna.exceptions import OptunaError

        if self._clock() < self._next_beat:
            return
        self._next_beat = self._clock() + BEAT_SECONDS
        for number in list(self._mine):
            self._mine[number] += 1
            try:
                self._storage.set_trial_user_attr(self._id(number), "beat", self._mine[number])
            except OptunaError:  # the database is busy, or others took the run for dead: `_finish` will know
                continue

    def _finish(self, number: int, state: str, values: list[float] | None = None, **attributes: Any) -> bool:
        from optuna.exceptions import UpdateFinishedTrialError
        from optuna.trial import TrialState

        trial_id = self._id(number)
        self._fresh = False

        def write() -> bool:
            for name, value in attributes.items():
                self._storage.set_trial_user_attr(trial_id, name, value)
            return self._storage.set_trial_state_values(trial_id, TrialState[state], values)

        try:
            written = _patiently(write)
        except UpdateFinishedTrialError:
            written = False
        self._mine.pop(number, None)
        return written

    def _read(self) -> None:
        attempts: dict[str, list[_Attempt]] = {}
        for trial in _patiently(lambda: self._storage.get_all_trials(self._study_id, deepcopy=False)):
            known = trial.user_attrs
            if isinstance(known.get("key"), str):  # others may keep what they like in the same storage
                attempt = _Attempt(trial.number, known.get("retry", 0), trial.state, known)
                attempts.setdefault(known["key"], []).append(attempt)
        self._attempts = attempts
        self._fresh = True

    def _attempt(self, trial: Trial) -> _Attempt | None:
        """The attempt that tells how far a run is: what is complete, else the first of the latest tries."""
        counting = [attempt for attempt in self._attempts.get(trial.key, []) if attempt.counts]
        complete = [attempt for attempt in counting if attempt.state.name == "COMPLETE"]
        if complete:
            return complete[0]
        latest = max((attempt.retry for attempt in counting), default=0)
        return next((attempt for attempt in counting if attempt.retry == latest), None)

    def _silent(self) -> list[int]:
        """The runs of others that have not been heard of for so long that they are dead.

        No clocks are compared: a beat is a number, and we look for how long it has been the same.
        """
        now = self._clock()
        beats = {
            attempt.number: attempt.attributes.get("beat")
            for attempts in self._attempts.values()
            for attempt in attempts
            if attempt.state.name == "RUNNING" and attempt.number not in self._mine
        }
        known = self._beats
        self._beats = {
            number: known[number] if number in known and known[number][0] == beat else (beat, now)
            for number, beat in beats.items()
        }
        return [number for number, (_, since) in self._beats.items() if now - since > PATIENCE_SECONDS]

    def _id(self, number: int) -> int:
        return self._storage.get_trial_id_from_study_id_trial_number(self._study_id, number)


class _Connection(sqlite3.Connection):
    """One that does not wait for the disk at every commit; what is written outlives a killed process all the same."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self.execute("PRAGMA journal_mode=WAL")
        self.execute("PRAGMA synchronous=NORMAL")


def sqlite_url(path: Path) -> str:
    """The URL of an SQLite file, which is made if it is not there.

    Args:
        path: The file.

    Example:
        >>> sqlite_url(Path("/runs/is it?.db"))
        'sqlite:////runs/is it%3F.db'
    """
    return f"sqlite:///{quote(str(path.absolute()), safe=_PLAIN)}"


def _open(url: str, study: str) -> tuple["BaseStorage", int]:
    import optuna
    from sqlalchemy.exc import SQLAlchemyError

    logging.getLogger("optuna").setLevel(logging.ERROR)
    options = {"connect_args": {"timeout": _LOCK_SECONDS, "factory": _Connection}} if url.startswith("sqlite") else {}
    for wait in (0.1, 0.3, 1.0, None):
        try:
            with warnings.catch_warnings():
                warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
                storage = optuna.storages.get_storage(optuna.storages.RDBStorage(url, options))
                optuna.create_study(storage=storage, study_name=study, direction="minimize", load_if_exists=True)
            return storage, storage.get_study_id_from_name(study)
        except (SQLAlchemyError, optuna.exceptions.StorageInternalError, RuntimeError, ImportError) as error:
            if wait is None or isinstance(error, ImportError):
                raise StorageRefused(_why(url, error)) from error
            time.sleep(wait)  # two that begin at once both make the tables
    raise AssertionError


def _why(url: str, error: Exception) -> str:
    from sqlalchemy.engine import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        shown = make_url(url).render_as_string(hide_password=True)
    except ArgumentError:
        shown = "what was given"
    cause = error.__cause__ or error
    reason = str(getattr(cause, "orig", None) or cause).strip().partition("\n")[0]
    return f"`--storage` must be the URL of a database that can be opened; {shown}: {reason}"


def _patiently(call: Callable[[], T]) -> T:
    """Call again if the database is locked or away for a moment."""
    from optuna.exceptions import StorageInternalError

    for done in range(_TRIES):
        try:
            return call()
        except StorageInternalError:
            if done == _TRIES - 1:
                raise
            time.sleep(0.2 * 2**done)
    raise AssertionError
