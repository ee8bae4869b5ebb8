# SPDX-License-Identifier: Apache-2.0
"""What a worker makes of a run, whatever the run does."""

import math

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lightning_stable.studies.engine.study import Trial
from lightning_stable.studies.engine.worker import load_study, make_run
from tests.studies.engine import toy_study


class Answering:
    objective = "loss"

    def __init__(self, answer):
        self.answer = answer

    def run(self, trial):
        if isinstance(self.answer, BaseException):
            raise self.answer
        return self.answer


def answer_to(answer):
    return make_run(Answering(answer), Trial("a"))


def test_a_study_is_found_by_its_path():
    assert type(load_study(toy_study.PATH)).__name__ == "ToyStudy"


def test_numbers_of_any_kind_become_floats():
    answer = answer_to({"loss": np.float32(0.5), "steps": 3, "share": torch.tensor(0.25).item()})
    assert answer["numbers"] == {"loss": 0.5, "steps": 3.0, "share": 0.25}
    assert {type(value) for value in answer["numbers"].values()} == {float}
    assert answer["seconds"] >= 0.0


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_run_that_diverged_is_no_run_that_failed(value):
    assert repr(answer_to({"loss": value})["numbers"]["loss"]) == repr(value)


@pytest.mark.parametrize(
    "answer", [None, 0.5, {}, {"error": 0.5}, {"loss": "low"}, {"loss": True}, {"loss": torch.tensor(0.5)}]
)
def test_what_is_no_numbers_by_name_is_a_failure_that_says_so(answer):
    assert answer_to(answer)["error"].startswith("TypeError: a run must return numbers")


@pytest.mark.parametrize("error", [RuntimeError("no"), SystemExit(3), MemoryError()])
def test_whatever_is_raised_is_a_failure_with_its_name(error, capsys):
    assert answer_to(error)["error"].startswith(type(error).__name__)
    assert "Traceback" in capsys.readouterr().err  # for the log


def test_a_run_is_told_to_end_by_nothing_else():
    with pytest.raises(KeyboardInterrupt):
        answer_to(KeyboardInterrupt())


def test_a_run_that_lightning_breaks_off_for_a_signal_has_not_failed():
    with pytest.raises(SystemExit) as stop:
        answer_to(SIGTERMException())
    assert stop.value.code == 143
