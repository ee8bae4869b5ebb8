# SPDX-License-Identifier: Apache-2.0
"""The grid of the study, and that a worker can make a run of it."""

from itertools import pairwise

import pytest
import torch

from lightning_stable.schedules import ProfileLR
from lightning_stable.studies.budget.study import BUDGETS, RATES, SCHEDULES, BudgetStudy
from lightning_stable.studies.engine.equal_tuning import require_equal_tuning
from lightning_stable.studies.engine.worker import load_study, make_run
from lightning_stable.studies.study_command import STUDIES


@pytest.mark.parametrize("quick", [True, False])
def test_all_schedules_have_the_same_rates_in_every_setting(quick):
    study = load_study(STUDIES["budget"])
    trials = study.trials((0, 1, 2), quick)
    require_equal_tuning("budget", trials)
    rates = {(trial.side, trial.setting["optimizer"]): set() for trial in trials}
    for trial in trials:
        rates[trial.side, trial.setting["optimizer"]].add(trial.tuning["lr"])
    for optimizer in RATES:
        assert len({frozenset(rates[side, optimizer]) for side in SCHEDULES}) == 1


def test_the_full_study_is_the_one_that_was_asked_for():
    trials = BudgetStudy().trials((0, 1, 2), quick=False)
    assert {trial.setting["budget"] for trial in trials} == set(BUDGETS) == {0.01, 0.05, 0.1, 0.25, 0.5, 1.0}
    assert {trial.setting["optimizer"] for trial in trials} == {"sgd", "adam"}
    assert len({trial.side for trial in trials}) == 8
    assert len(trials) == 8 * 6 * 2 * 5 * 3


def test_neighbouring_rates_are_about_a_factor_of_three_apart():
    for rates in RATES.values():
        ordered = sorted(rates)
        assert all(2.9 < high / low < 3.4 for low, high in pairwise(ordered))
        assert rates[0] == ordered[len(ordered) // 2], "of equal points the one in the middle is chosen"


def test_every_schedule_but_the_plateau_is_a_profile():
    for side in set(SCHEDULES) - {"Plateau"}:
        optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        assert ProfileLR(optimizer, side, total_steps=4).get_last_lr()[0] > 0


def test_a_run_is_made_from_a_trial_and_the_data_is_read_once():
    study = BudgetStudy()
    trials = study.trials((0,), quick=True)
    trial = next(trial for trial in trials if trial.setting["budget"] == 0.1)
    answer = make_run(study, trial)
    assert answer["numbers"]["steps"] == round(0.1 * trial.setting["full_epochs"] * 56)
    digits = study._digits
    assert make_run(study, trial)["numbers"] == answer["numbers"]
    assert study._digits is digits


def test_the_cost_of_a_run_is_that_of_its_steps():
    study = BudgetStudy()
    costs = {trial.setting["budget"]: study.cost(trial) for trial in study.trials((0,), quick=False)}
    assert costs[1.0] > 1.9 * costs[0.5] > 3.5 * costs[0.25] > 0
