# SPDX-License-Identifier: Apache-2.0
"""Every run is made once, whoever else is there, whoever dies, and whatever the clocks say."""

import math
import sqlite3
from concurrent.futures import ThreadPoolExecutor
from itertools import count

import optuna
import pytest

from lightning_stable.studies.engine.study import Trial
from lightning_stable.studies.engine.trial_store import (
    BEAT_SECONDS,
    PATIENCE_SECONDS,
    StorageRefused,
    TrialStore,
    sqlite_url,
)

TRIAL = Trial("rex", {"budget": 0.05}, {"lr": 0.1}, seed=2)


class Clock:
    def __init__(self):
        self.now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def make_store(tmp_path, clock):
    return lambda name="toy v1": TrialStore(sqlite_url(tmp_path / "trials.db"), name, clock)


@pytest.fixture
def store(make_store):
    return make_store()


def seen_by(store, trial=TRIAL):
    store.refresh()
    return store.status(trial)


def test_a_run_is_free_then_running_then_complete(store, make_store):
    other = make_store()
    assert store.status(TRIAL) == "free"
    number = store.claim(TRIAL)
    assert store.status(TRIAL) == seen_by(other) == "running"
    assert store.result(TRIAL) is None
    assert store.complete(number, {"error": 0.25, "loss": math.nan}, "error", seconds=1.5)
    assert seen_by(store) == seen_by(other) == "complete"
    result = other.result(TRIAL)
    assert (result.trial, result.error, result.seconds) == (TRIAL, None, 1.5)
    assert result.numbers["error"] == 0.25
    assert math.isnan(result.numbers["loss"])


def test_what_is_running_or_complete_is_not_given_to_another(store, make_store):
    other = make_store()
    number = store.claim(TRIAL)
    assert other.claim(TRIAL) is None
    store.complete(number, {"error": 0.25}, "error", 1.0)
    assert other.claim(TRIAL) is None
    assert make_store().claim(TRIAL, retry_failed=True) is None


def test_of_two_that_claim_at_once_the_earlier_one_makes_the_run(store, make_store, monkeypatch):
    """Both find the run free, and both create a trial, before either has looked again."""
    other = make_store()
    create, numbers = other._storage.create_new_trial, []

    def create_after_the_other(*arguments):
        numbers.append(store.claim(TRIAL))
        return create(*arguments)

    monkeypatch.setattr(other._storage, "create_new_trial", create_after_the_other)
    assert other.claim(TRIAL) is None
    [first] = numbers
    assert first is not None
    assert seen_by(other) == "running"
    store, other = other, store
    other.complete(first, {"error": 0.5}, "error", 1.0)
    assert seen_by(store) == "complete"


def test_many_that_claim_the_same_runs_make_each_of_them_once(make_store):
    trials = [Trial("a", {"x": x}) for x in range(12)]
    make_store()

    def make_all(_):
        mine = make_store()
        claimed = [(trial, mine.claim(trial)) for trial in trials]
        return [trial for trial, number in claimed if number is not None]

    with ThreadPoolExecutor(4) as pool:
        made = [trial for each in pool.map(make_all, range(4)) for trial in each]
    assert sorted(trial.key for trial in made) == sorted(trial.key for trial in trials)


def test_a_run_that_broke_off_is_free_again(store, make_store):
    number = store.claim(TRIAL)
    assert store.set_free(number)
    assert seen_by(store) == "free"
    other = make_store()
    again = other.claim(TRIAL)
    other.complete(again, {"error": 0.5}, "error", 1.0)
    assert seen_by(store) == "complete"
    assert store.claim(TRIAL) is None


def test_everything_claimed_here_is_set_free_at_once(store, make_store):
    trials = [Trial("a", {"x": x}) for x in range(3)]
    done, *_ = [store.claim(trial) for trial in trials]
    store.complete(done, {"error": 0.5}, "error", 1.0)
    store.set_all_free()
    assert [seen_by(make_store(), trial) for trial in trials] == ["complete", "free", "free"]


def test_a_run_that_is_not_heard_of_any_longer_is_free_again(store, make_store, clock):
    other = make_store()
    number = store.claim(TRIAL)
    for _ in range(5):
        clock.now += PATIENCE_SECONDS * 0.8  # each time less than the patience
        store.beat()
        assert seen_by(other) == "running"
    clock.now += PATIENCE_SECONDS * 1.1
    assert seen_by(store) == "running", "its own runs are not dead"
    assert seen_by(other) == "free"
    again = other.claim(TRIAL)
    assert not store.complete(number, {"error": 0.1}, "error", 1.0), "the run is another's by now"
    other.complete(again, {"error": 0.5}, "error", 1.0)
    assert seen_by(store) == "complete"
    assert store.result(TRIAL).numbers == {"error": 0.5}


def test_somebody_who_comes_late_is_as_patient(store, make_store, clock):
    store.claim(TRIAL)
    clock.now += 10 * PATIENCE_SECONDS
    late = make_store()
    assert late.status(TRIAL) == "running", "it does not know yet whether that is alive"
    clock.now += PATIENCE_SECONDS * 1.1
    assert seen_by(late) == "free"


def test_beats_are_no_more_frequent_than_needed(store, make_store, clock):
    number = store.claim(TRIAL)

    def beats():
        storage = optuna.storages.get_storage(make_store()._storage._backend.url)
        return storage.get_all_trials(1)[number].user_attrs["beat"]

    for _ in range(4):
        store.beat()
    assert beats() == 1
    clock.now += BEAT_SECONDS
    store.beat()
    assert beats() == 2


def test_a_failed_run_stays_so_unless_it_is_to_be_retried(store, make_store):
    store.fail(store.claim(TRIAL), "RuntimeError: no", 1.0)
    other = make_store()
    assert other.status(TRIAL) == "failed"
    assert other.result(TRIAL).error == "RuntimeError: no"
    assert other.claim(TRIAL) is None
    again = other.claim(TRIAL, retry_failed=True)
    assert seen_by(store) == "running"
    assert store.claim(TRIAL, retry_failed=True) is None
    other.complete(again, {"error": 0.5}, "error", 1.0)
    assert seen_by(store) == "complete"
    assert store.result(TRIAL).error is None


def test_a_retry_that_breaks_off_leaves_the_failure(store):
    store.fail(store.claim(TRIAL), "RuntimeError: no", 1.0)
    store.set_free(store.claim(TRIAL, retry_failed=True))
    assert seen_by(store) == "failed"
    store.fail(store.claim(TRIAL, retry_failed=True), "RuntimeError: still no", 1.0)
    assert seen_by(store) == "failed"
    assert store.result(TRIAL).error == "RuntimeError: still no"


def test_of_two_results_the_first_counts(store, make_store):
    """SQLite may let two finish that both were told to be the one: the table shows one of them, the same for all."""
    first = store.claim(TRIAL)
    storage = store._storage
    template = optuna.trial.create_trial(
        value=9.0, user_attrs={"key": TRIAL.key, "retry": 0, "numbers": {"error": 9.0}, "seconds": 1.0}
    )
    storage.create_new_trial(store._study_id, template)
    store.complete(first, {"error": 0.5}, "error", 1.0)
    assert [make_store().result(TRIAL).numbers["error"] for _ in range(2)] == [0.5, 0.5]


@pytest.mark.parametrize(("value", "stored"), [(math.nan, math.inf), (math.inf, math.inf), (0.5, 0.5)])
def test_the_value_in_the_database_is_one_that_databases_have(store, value, stored):
    number = store.claim(TRIAL)
    store.complete(number, {"error": value}, "error", 1.0)
    assert store._storage.get_all_trials(store._study_id)[number].value == stored
    store.refresh()
    assert repr(store.result(TRIAL).numbers["error"]) == repr(value)


def test_studies_with_other_names_do_not_meet(store, make_store):
    store.claim(TRIAL)
    assert make_store("toy v2").status(TRIAL) == "free"


def test_what_others_keep_in_the_same_study_is_left_alone(store):
    storage = store._storage
    storage.create_new_trial(store._study_id)
    assert seen_by(store) == "free"
    assert store.claim(TRIAL) == 1


def test_a_database_that_is_locked_for_a_moment_is_asked_again(store, monkeypatch):
    failures = count()
    create = store._storage.create_new_trial

    def create_at_the_third_time(*arguments):
        if next(failures) < 2:
            raise optuna.exceptions.StorageInternalError("database is locked")
        return create(*arguments)

    monkeypatch.setattr(store._storage, "create_new_trial", create_at_the_third_time)
    monkeypatch.setattr("lightning_stable.studies.engine.trial_store.time.sleep", lambda seconds: None)
    assert store.claim(TRIAL) == 0


def test_a_folder_may_have_any_name(tmp_path):
    folder = tmp_path / "a {b} ?c %d"
    folder.mkdir()
    store = TrialStore(sqlite_url(folder / "trials.db"), "toy")
    assert store.claim(TRIAL) == 0
    assert (folder / "trials.db").is_file()


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("url", "reason"),
    [
        ("no url at all", "what was given"),
        ("sqlite:////no/such/folder/trials.db", "unable to open database file"),
        ("postgresql+no_such_driver://me:secret@host/runs", r"me:\*\*\*@host/runs"),
        ("cobol://host/runs", "cobol"),
    ],
)
def test_a_storage_that_cannot_be_opened_is_refused_by_name(url, reason, monkeypatch):
    monkeypatch.setattr("lightning_stable.studies.engine.trial_store.time.sleep", lambda seconds: None)
    with pytest.raises(StorageRefused, match=reason) as refused:
        TrialStore(url, "toy")
    assert "secret" not in str(refused.value)


def test_a_file_that_is_no_database_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_stable.studies.engine.trial_store.time.sleep", lambda seconds: None)
    (tmp_path / "trials.db").write_text("these are no trials, " * 100)
    with pytest.raises(StorageRefused, match=r"trials\.db: file is not a database"):
        TrialStore(sqlite_url(tmp_path / "trials.db"), "toy")
    assert sqlite3.sqlite_version  # the module is there, so that it was the file
