# SPDX-License-Identifier: Apache-2.0
"""A trial is known by its content."""

import math

import pytest

from lightning_stable.studies.engine.study import Trial, grid


def test_a_key_does_not_depend_on_the_order_of_names_and_leads_back_to_the_trial():
    trial = Trial("rex", {"budget": 0.05, "optimizer": "sgd"}, {"lr": 0.1, "beta": None}, seed=2)
    same = Trial("rex", {"optimizer": "sgd", "budget": 0.05}, {"beta": None, "lr": 0.1}, seed=2)
    assert trial.key == same.key
    assert Trial.from_key(trial.key) == trial
    assert len({trial, same, Trial("rex", seed=2)}) == 2


def test_every_part_of_a_trial_is_in_its_key():
    trials = [Trial("a"), Trial("b"), Trial("a", {"x": 1}), Trial("a", {}, {"x": 1}), Trial("a", seed=1)]
    assert len({trial.key for trial in trials}) == len(trials)


@pytest.mark.parametrize("value", [math.nan, math.inf, [1], {"a": 1}, object()])
def test_a_value_that_json_does_not_keep_is_refused(value):
    with pytest.raises(ValueError, match=r"`Trial\(lr=...\)` must be"):
        Trial("a", {}, {"lr": value})


def test_a_grid_has_every_combination_once():
    trials = grid(["a", "b"], [{"x": 1}, {"x": 2}, {"x": 3}], [{"lr": 0.1}, {"lr": 0.2}], range(4))
    assert len(trials) == len(set(trials)) == 2 * 3 * 2 * 4
