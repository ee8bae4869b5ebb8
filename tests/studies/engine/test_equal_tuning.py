# SPDX-License-Identifier: Apache-2.0
"""No side is tuned more than another."""

import pytest

from lightning_stable.studies.engine.equal_tuning import require_equal_tuning, tuning_budget
from lightning_stable.studies.engine.study import Trial, grid

RATES = [{"lr": lr} for lr in (0.1, 0.2, 0.3)]


def test_equal_sides_pass():
    require_equal_tuning("toy", grid(["a", "b"], [{"x": 1}, {"x": 2}], RATES, [0, 1]))


def test_sides_may_tune_other_things_as_often():
    other = [{"beta": beta} for beta in (0.1, 0.5, 0.9)]
    require_equal_tuning("toy", grid(["a"], [{}], RATES, [0]) + grid(["b"], [{}], other, [0]))


def test_a_side_with_more_points_is_refused_by_name_and_counts():
    trials = grid(["a"], [{"x": 1}], RATES, [0]) + grid(["b"], [{"x": 1}], RATES[:1], [0])
    with pytest.raises(ValueError, match=r'unequal tuning in the setting \{"x":1\}: a 3 points, b 1 point\.'):
        require_equal_tuning("toy", trials)


def test_settings_are_looked_at_apart():
    """Sides with as many points in all may still differ where it counts."""
    trials = [
        *grid(["a"], [{"x": 1}], RATES, [0]),
        *grid(["a"], [{"x": 2}], RATES[:1], [0]),
        *grid(["b"], [{"x": 1}], RATES[:1], [0]),
        *grid(["b"], [{"x": 2}], RATES, [0]),
    ]
    with pytest.raises(ValueError, match=r"a 3 points, b 1 point"):
        require_equal_tuning("toy", trials)


def test_settings_may_have_other_numbers_of_points():
    trials = grid(["a", "b"], [{"x": 1}], RATES, [0]) + grid(["a", "b"], [{"x": 2}], RATES[:1], [0])
    require_equal_tuning("toy", trials)
    assert "1 or 3 points of lr x 1 seed (0) = 1 or 3 runs in each setting (2); 8 runs" in tuning_budget(trials)


def test_sides_need_the_same_seeds():
    with pytest.raises(ValueError, match=r"unequal seeds: \(0,\) and \(0, 1\)"):
        require_equal_tuning("toy", grid(["a"], [{}], RATES, [0, 1]) + grid(["b"], [{}], RATES, [0]))
    with pytest.raises(ValueError, match="unequal seeds"):
        require_equal_tuning("toy", [*grid(["a"], [{}], RATES, [0, 1])[:-1]])


def test_no_runs_and_the_same_run_twice_are_refused():
    with pytest.raises(ValueError, match="no runs"):
        require_equal_tuning("toy", [])
    with pytest.raises(ValueError, match="same run twice"):
        require_equal_tuning("toy", [Trial("a"), Trial("b"), Trial("a")])


def test_the_budget_is_said_in_words():
    said = tuning_budget(grid(["a", "b"], [{"x": x} for x in range(4)], RATES, [0, 1, 2]))
    assert said == (
        "each of the 2 sides has 3 points of lr x 3 seeds (0, 1, 2) = 9 runs in each setting (4); 72 runs in all"
    )
    assert "1 point (nothing is tuned) x 1 seed" in tuning_budget([Trial("a"), Trial("b")])
