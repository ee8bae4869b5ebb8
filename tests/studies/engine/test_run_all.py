# SPDX-License-Identifier: Apache-2.0
"""Who is given which run, told with workers that are none; `test_study_command.py` has real ones."""

import io
from collections import Counter

import pytest

from lightning_stable.studies.engine.crew import Done
from lightning_stable.studies.engine.run_all import RunAll
from lightning_stable.studies.engine.run_progress import RunProgress
from lightning_stable.studies.engine.trial_store import TrialStore, sqlite_url
from tests.studies.engine.toy_study import ToyStudy

STUDY = ToyStudy()
TRIALS = STUDY.trials((0,), quick=True)
NUMBERS = {"numbers": {"loss": 0.5}, "seconds": 1.0}


class Crew:
    """Answers at once, by a function from a trial to an answer."""

    def __init__(self, answer, size=2):
        self.answer, self.size = answer, size
        self.given, self.made, self.ended = [], Counter(), False

    @property
    def has_idle(self):
        return len(self.given) < self.size

    def give(self, number, trial):
        self.given.append((number, trial))

    def listen(self, seconds):
        for number, trial in self.given:
            self.made[trial.key] += 1
            answer = self.answer(trial)
            yield Done(number, trial, answer, None if answer else -9)
        self.given.clear()

    def end(self):
        self.ended = True


@pytest.fixture
def store(tmp_path):
    return TrialStore(sqlite_url(tmp_path / "trials.db"), "toy")


def run(store, crew, **options):
    progress = RunProgress("toy", [1.0] * len(TRIALS), io.StringIO())
    RunAll(STUDY, TRIALS, store, crew, progress, **options)()
    return [store.status(trial) for trial in TRIALS]


def test_every_run_is_made_once(store):
    crew = Crew(lambda trial: NUMBERS)
    assert run(store, crew) == ["complete"] * len(TRIALS)
    assert crew.made == Counter(trial.key for trial in TRIALS)
    assert crew.ended
    again = Crew(lambda trial: NUMBERS)
    run(store, again)
    assert not again.made


def test_a_run_that_fails_does_not_stop_the_others_and_is_retried_only_if_asked(store):
    bad = TRIALS[1]
    crew = Crew(lambda trial: {"error": "no", "seconds": 1.0} if trial == bad else NUMBERS)
    assert Counter(run(store, crew)) == {"complete": len(TRIALS) - 1, "failed": 1}
    assert run(store, crew)[1] == "failed"
    assert crew.made[bad.key] == 1
    assert run(store, crew, retry_failed=True)[1] == "failed"
    assert crew.made[bad.key] == 2, "once more, and not for ever"
    assert run(store, Crew(lambda trial: NUMBERS), retry_failed=True)[1] == "complete"


def test_a_run_whose_worker_dies_is_made_again_but_not_for_ever(store):
    killer, unlucky, deaths = TRIALS[0], TRIALS[2], Counter()

    def answer(trial):
        deaths[trial.key] += 1
        return None if trial == killer or (trial == unlucky and deaths[trial.key] == 1) else NUMBERS

    statuses = run(store, Crew(answer))
    assert Counter(statuses) == {"complete": len(TRIALS) - 1, "failed": 1}
    assert store.result(killer).error == "the worker ended by signal 9, 3 times"
    assert (deaths[killer.key], deaths[unlucky.key]) == (3, 2)


def test_a_retry_whose_worker_dies_is_still_a_retry(store):
    bad, deaths = TRIALS[0], Counter()
    run(store, Crew(lambda trial: {"error": "no", "seconds": 1.0} if trial == bad else NUMBERS))

    def answer(trial):
        deaths[trial.key] += 1
        return None if deaths[trial.key] == 1 else NUMBERS

    assert run(store, Crew(answer), retry_failed=True)[0] == "complete"
    assert deaths == {bad.key: 2}


@pytest.mark.parametrize("error", [KeyboardInterrupt, SystemExit, RuntimeError])
def test_what_breaks_off_is_free_for_the_next_command(store, error):
    def answer(trial):
        if trial == TRIALS[3]:
            raise error
        return NUMBERS

    crew = Crew(answer)
    with pytest.raises(error):
        run(store, crew)
    assert crew.ended
    store.refresh()
    assert Counter(store.status(trial) for trial in TRIALS) == {"complete": 3, "free": len(TRIALS) - 3}
    assert run(store, Crew(lambda trial: NUMBERS)) == ["complete"] * len(TRIALS)


def test_runs_of_another_machine_are_waited_for(store, tmp_path):
    other = TrialStore(sqlite_url(tmp_path / "trials.db"), "toy")
    number = other.claim(TRIALS[0])
    crew = Crew(lambda trial: NUMBERS)
    listen, listens = crew.listen, []

    def listen_until_the_other_is_done(seconds):
        yield from listen(seconds)
        listens.append(seconds)
        if len(listens) == 8:
            other.complete(number, {"loss": 0.25}, "loss", 1.0)

    crew.listen = listen_until_the_other_is_done
    assert run(store, crew, clock=lambda: 10.0 * len(listens)) == ["complete"] * len(TRIALS)
    assert crew.made[TRIALS[0].key] == 0
    assert store.result(TRIALS[0]).numbers == {"loss": 0.25}
