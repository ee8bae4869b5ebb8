# SPDX-License-Identifier: Apache-2.0
"""Give every run of a study that nobody makes or has made to a worker, until all of them are done."""

import time
from collections import Counter
from collections.abc import Callable, Sequence

from lightning_stable.studies.engine.crew import Crew, Done
from lightning_stable.studies.engine.run_progress import RunProgress
from lightning_stable.studies.engine.study import Study, Trial
from lightning_stable.studies.engine.trial_store import TrialStore

_LOOK_SECONDS = 2.0  # between two looks at what others do
_LISTEN_SECONDS = 0.5
_DEATHS = 3  # of workers that make the same run, before the run is what has failed


class RunAll:
    """The runs of a study, made here and wherever the same command runs with the same storage.

    Args:
        study: Whose.
        trials: All of its runs.
        store: Where they are kept.
        crew: Who makes them here.
        progress: Who is told how far it is.
        retry_failed: Whether runs that had failed before are made once more.
        clock: Seconds, from any beginning.
    """

    def __init__(
        self,
        study: Study,
        trials: Sequence[Trial],
        store: TrialStore,
        crew: Crew,
        progress: RunProgress,
        retry_failed: bool = False,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._study = study
        self._open = list(trials)
        self._done = self._failed = 0
        self._cost_done = 0.0
        self._store = store
        self._crew = crew
        self._progress = progress
        self._clock = clock
        self._deaths: Counter[str] = Counter()
        failed = [trial for trial in trials if store.status(trial) == "failed"] if retry_failed else []
        self._retry = set(failed)
        self._next_look = 0.0

    def __call__(self) -> None:
        """Make them. Whatever ends this early gives back the runs that were being made."""
        try:
            self._settle()
            self._progress.begin_at(self._cost_done)
            while self._open:
                self._give_out()
                for done in self._crew.listen(_LISTEN_SECONDS):
                    self._take(done)
                self._store.beat()
                self._look()
                self._settle()
        finally:
            self._crew.end()
            self._store.set_all_free()
            self._progress.clear()

    def _settle(self) -> None:
        """Put aside what is done, here or elsewhere, and say how far it is."""
        for trial in [trial for trial in self._open if self._is_done(trial)]:
            self._open.remove(trial)
            self._done += 1
            self._failed += self._store.status(trial) == "failed"
            self._cost_done += self._study.cost(trial)
        self._progress(self._done, self._failed, self._cost_done)

    def _is_done(self, trial: Trial) -> bool:
        status = self._store.status(trial)
        return status == "complete" or (status == "failed" and trial not in self._retry)

    def _give_out(self) -> None:
        for trial in self._open:
            if not self._crew.has_idle:
                return
            retry = trial in self._retry
            if self._store.status(trial) != "free" and not (retry and self._store.status(trial) == "failed"):
                continue
            number = self._store.claim(trial, retry_failed=retry)
            self._retry.discard(trial)
            if number is not None:
                self._crew.give(number, trial)

    def _take(self, done: Done) -> None:
        if done.answer is None:
            self._bury(done)
        elif "error" in done.answer:
            self._store.fail(done.number, done.answer["error"], done.answer["seconds"])
        else:
            self._store.complete(
                done.number, done.answer["numbers"], self._study.objective, seconds=done.answer["seconds"]
            )
        self._next_look = 0.0

    def _bury(self, done: Done) -> None:
        """A worker was killed, or crashed: somebody else makes its run, unless the run is what kills them."""
        self._deaths[done.trial.key] += 1
        if self._deaths[done.trial.key] < _DEATHS:
            self._store.set_free(done.number)
            self._store.refresh()
            if self._store.status(done.trial) == "failed":  # this was to be another try
                self._retry.add(done.trial)
            return
        code = done.exit_code
        how = f"by signal {-code}" if code is not None and code < 0 else f"with exit status {code}"
        self._store.fail(done.number, f"the worker ended {how}, {_DEATHS} times", float("nan"))

    def _look(self) -> None:
        if self._clock() >= self._next_look:
            self._store.refresh()
            self._next_look = self._clock() + _LOOK_SECONDS
