# SPDX-License-Identifier: Apache-2.0
"""The choice of tuning points, and what is said of the cells."""

import math

import pytest

from lightning_stable.studies.engine.outcome import Outcome, Result
from lightning_stable.studies.engine.study import Trial


def runs(side, errors, setting=None, **more):
    """One result per learning rate and seed: `errors` is a list of seeds for each learning rate."""
    return [
        Result(Trial(side, setting or {}, {"lr": lr}, seed), {"error": error, **more})
        for lr, seeds in errors.items()
        for seed, error in enumerate(seeds)
    ]


def test_the_point_with_the_best_mean_is_chosen_not_that_of_the_best_seed():
    cell = Outcome(runs("a", {0.1: [0.3, 0.3], 0.2: [0.0, 0.9], 0.3: [0.5, 0.5]}), "error").cell("a", {})
    assert cell.tuning == {"lr": 0.1}
    assert (cell.mean("error"), cell.spread("error")) == (0.3, 0.0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_diverged_seed_is_the_worst_there_is(bad):
    cell = Outcome(runs("a", {0.1: [0.9, 0.9], 0.2: [0.0, bad]}), "error").cell("a", {})
    assert cell.tuning == {"lr": 0.1}
    cell = Outcome(runs("a", {0.2: [0.0, bad]}), "error").cell("a", {})
    assert not math.isfinite(cell.mean("error"))
    assert math.isnan(cell.spread("error"))


def test_a_failed_run_counts_as_the_worst_too():
    failed = Result(Trial("a", {}, {"lr": 0.2}, 1), error="RuntimeError: no")
    outcome = Outcome([*runs("a", {0.1: [0.9, 0.9], 0.2: [0.0]}), failed], "error")
    assert outcome.cell("a", {}).tuning == {"lr": 0.1}
    assert outcome.failed == [failed]


def test_settings_choose_apart_from_each_other():
    outcome = Outcome([*runs("a", {1: [0], 2: [1]}, {"x": 1}), *runs("a", {1: [1], 2: [0]}, {"x": 2})], "error")
    assert [outcome.cell("a", setting).tuning["lr"] for setting in outcome.settings] == [1, 2]
    assert outcome.cell("b", {"x": 1}) is None


def test_the_edge_of_the_grid_is_named():
    inside = {0.1: [0.2], 0.2: [0.1], 0.3: [0.2]}
    outside = {0.1: [0.3], 0.2: [0.2], 0.3: [0.1]}
    two = {0.1: [0.3], 0.2: [0.2]}
    outcome = Outcome([*runs("in", inside), *runs("out", outside), *runs("two", two)], "error")
    assert [outcome.cell(side, {}).at_edge for side in outcome.sides] == [(), ("lr",), ()]


def test_equal_sides_share_their_ranks():
    outcome = Outcome(
        [*runs("a", {1: [0.1]}), *runs("b", {1: [0.1]}), *runs("c", {1: [0.0]}), *runs("d", {1: [math.nan]})], "error"
    )
    assert outcome.ranks({}) == {"a": 2.5, "b": 2.5, "c": 1.0, "d": 4.0}


def test_ranks_by_another_number():
    outcome = Outcome([*runs("a", {1: [0.1]}, steps=9), *runs("b", {1: [0.2]}, steps=3)], "error")
    assert outcome.ranks({}, "steps") == {"a": 2.0, "b": 1.0}
