# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from lightning_stable.studies.engine.outcome import Outcome, Result
from lightning_stable.studies.engine.study import Trial
from lightning_stable.studies.survival.gaps import LOST_ABOVE, Gap, gaps, is_lost, streams_of
from tests.studies.survival.outcomes import CLEAN, MIXED, NAN, outcome, three_sides


def test_a_gap_is_to_the_clean_run_of_the_same_side_and_seed():
    found = gaps(three_sides(), MIXED)
    assert found["full"].survived == pytest.approx({0: 2.11 - 2.1, 1: 2.23 - 2.2})
    assert found["guard_skip"].survived == pytest.approx({0: 0.05, 1: 0.03})


def test_a_lost_run_is_counted_and_not_averaged():
    found = gaps(three_sides(), MIXED)["adamw"]
    assert found.survived == pytest.approx({0: 0.2})
    assert found.lost == 1
    assert found.mean == pytest.approx(0.2)
    assert str(found) == "lost 1 of 2, else 0.200"


def test_the_gap_of_a_side_that_is_always_lost_is_infinite():
    found = gaps(three_sides(), NAN)["adamw"]
    assert (found.survived, found.lost, found.mean) == ({}, 2, math.inf)


@pytest.mark.parametrize("loss", [math.nan, math.inf, LOST_ABOVE + 1e-9])
def test_what_is_no_better_than_guessing_is_lost(loss):
    assert is_lost(loss)
    assert not is_lost(LOST_ABOVE)


def test_fewer_lost_runs_come_before_a_smaller_gap():
    best, worse = Gap({0: 0.1, 1: 0.3}), Gap({0: 0.5, 1: 0.5})
    one_lost, no_reference, all_lost = Gap({0: 0.0}, 1), Gap({1: 0.1}, 0, 1), Gap({}, 2)
    ordered = sorted([no_reference, one_lost, worse, all_lost, best], key=lambda gap: gap.order)
    assert ordered == [best, worse, one_lost, no_reference, all_lost]


def test_a_seed_without_a_clean_run_has_no_gap():
    found = gaps(outcome({("adamw", CLEAN): [2.0], ("adamw", MIXED): [2.1, 2.2], ("full", MIXED): [2.0]}), MIXED)
    assert list(found) == ["adamw"]
    assert found["adamw"].survived == pytest.approx({0: 0.1})


def test_a_failed_run_is_a_lost_one():
    results = [Result(Trial("adamw", CLEAN.point), {"loss": 2.0}), Result(Trial("adamw", MIXED.point), error="raised")]
    assert gaps(Outcome(results, "loss"), MIXED)["adamw"] == Gap({}, lost=1)


@pytest.mark.parametrize("reference", [math.nan, math.inf, LOST_ABOVE + 0.1])
def test_a_clean_run_that_is_lost_is_no_reference(reference):
    runs = outcome({("adamw", CLEAN): [2.0, reference, reference], ("adamw", MIXED): [2.1, 2.2, math.nan]})
    found = gaps(runs, MIXED)["adamw"]
    assert found.survived == pytest.approx({0: 0.1})
    assert (found.lost, found.no_reference) == (0, 2)
    assert str(found) == "no reference for 2 of 3, else 0.100"


def test_a_clean_run_that_failed_is_no_reference():
    results = [Result(Trial("adamw", CLEAN.point), error="raised"), Result(Trial("adamw", MIXED.point), {"loss": 2.0})]
    found = gaps(Outcome(results, "loss"), MIXED)["adamw"]
    assert found == Gap({}, no_reference=1)
    assert str(found) == "no reference for 1 of 1"


def test_streams_come_back_in_order():
    assert streams_of(three_sides()) == [CLEAN, MIXED, NAN]
