# SPDX-License-Identifier: Apache-2.0
"""Worker processes: real ones, which are held, killed and replaced."""

import os
import signal
import time

import pytest

from lightning_stable.studies.engine.crew import Crew
from lightning_stable.studies.engine.study import Trial
from tests.studies.engine import toy_study

TRIAL = Trial("narrow", {"noise": 0.0}, {"x": 0.5})


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(toy_study.FOLDER, str(tmp_path))
    return tmp_path


def listen(crew, runs=1):
    heard = []
    while len(heard) < runs:
        heard += crew.listen(1.0)
    return heard


def wait_for_line(path):
    while not path.exists() or not path.read_text().endswith("\n"):
        time.sleep(0.01)
    return path.read_text()


def test_workers_are_kept_given_runs_and_replaced_when_they_die(folder):
    with Crew(toy_study.PATH, 1, 1, folder / "log") as crew:
        assert crew.has_idle
        crew.give(7, TRIAL)
        assert (crew.running, crew.has_idle) == ([7], False)
        [first] = listen(crew)
        assert (first.number, first.trial, first.answer["numbers"]["loss"]) == (7, TRIAL, 0.5)
        crew.give(8, TRIAL)
        [second] = listen(crew)
        assert second.answer["numbers"]["pid"] == first.answer["numbers"]["pid"], "start-up is paid once"

        (folder / "hold").touch()
        (folder / "begun").unlink()
        crew.give(9, TRIAL)
        os.kill(int(wait_for_line(folder / "begun").split()[0]), signal.SIGKILL)
        [dead] = listen(crew)
        assert (dead.number, dead.answer, dead.exit_code) == (9, None, -signal.SIGKILL)
        assert crew.has_idle

        (folder / "hold").unlink()
        crew.give(10, TRIAL)
        [third] = listen(crew)
        assert third.answer["numbers"]["pid"] != first.answer["numbers"]["pid"]
    assert "said by a run" in (folder / "log").read_text()


def test_the_end_does_not_wait_for_runs(folder):
    (folder / "hold").touch()
    with Crew(toy_study.PATH, 1, 1, folder / "log") as crew:
        crew.give(1, TRIAL)
        pid = int(wait_for_line(folder / "begun").split()[0])
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
