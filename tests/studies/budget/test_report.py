# SPDX-License-Identifier: Apache-2.0
"""The table and the figure, from results that are made up."""

import math
import statistics

import pytest
from matplotlib.figure import Figure

from lightning_stable.studies.budget.report import budget_figure, budget_table, mean_ranks
from lightning_stable.studies.budget.study import SCHEDULES, BudgetStudy
from lightning_stable.studies.engine.outcome import Outcome, Result


def outcome_of(error, seeds=(0, 1, 2), quick=False):
    """From a function of side, budget and seed to a test error."""
    trials = BudgetStudy().trials(seeds, quick)
    results = []
    for trial in trials:
        value = error(trial.side, trial.setting["budget"], trial.seed)
        worse = abs(trial.tuning["lr"] - 0.1)
        results.append(Result(trial, {"test_error": value, "validation_error": value + worse, "steps": 1400.0}))
    return Outcome(results, "validation_error")


def place(side):
    return float(SCHEDULES.index(side))


def table_of(error, **options):
    return budget_table(outcome_of(error, **options))


def test_errors_are_by_budget_with_their_spread_and_the_best_is_bold():
    table = table_of(lambda side, budget, seed: 1.0 + place(side) + seed / 100)
    assert "| SGD with momentum: test error (%) | 1 % | 5 % | 10 % | 25 % | 50 % | 100 % |" in table
    assert "| Adam: test error (%) | 1 % |" in table
    assert table.count("| REX |" + " **1.01 ± 0.01** |" * 6) == 2
    assert table.count("| Linear |" + " 2.01 ± 0.01 |" * 6) == 2


def test_what_was_trained_is_said():
    table = table_of(lambda side, budget, seed: place(side))
    assert "a full run has 1400 steps. Learning rates: SGD with momentum 0.01, 0.03, 0.1, 0.3, 1; Adam 0.003," in table


def test_mean_ranks_are_sorted_and_over_low_and_high_budgets_apart():
    """REX is first at low budgets and last at high ones."""
    outcome = outcome_of(lambda side, budget, seed: place(side) if budget <= 0.1 else -place(side))
    low = [setting for setting in outcome.settings if setting["budget"] <= 0.1]
    assert mean_ranks(outcome, low)["REX"] == 1.0
    assert mean_ranks(outcome, outcome.settings)["REX"] == 4.5
    assert list(mean_ranks(outcome, low)) == list(SCHEDULES)
    table = budget_table(outcome)
    assert "| REX | 4.50 | 1.00 | 8.00 | 4.50 | 4.50 |" in table
    assert "budgets up to 10 % | budgets above 10 %" in table


@pytest.mark.parametrize(
    ("low", "high", "verdict"),
    [
        (0.0, 0.0, "REX is first of 8 at low budgets (mean rank 1.00; the best other is Linear with 2.00) and first"),
        (1.5, 1.5, "second of 8 at high budgets (mean rank 2.00; the best other is Linear with 1.00)"),
        (0.0, 2.5, "does not hold here"),
        (3.5, 0.0, "4th of 8 at low budgets"),
    ],
)
def test_the_claim_is_reported_as_it_came_out(low, high, verdict):
    def error(side, budget, seed):
        rex = low if budget <= 0.1 else high
        return rex if side == "REX" else place(side)

    table = table_of(error)
    assert verdict in table
    assert ("holds here" in table) == (low < 2 and high < 2)


def test_differences_of_chance_are_called_so():
    large = table_of(lambda side, budget, seed: place(side) + seed / 100)
    small = table_of(lambda side, budget, seed: place(side) / 1000 + seed)
    assert "in 12 of 12 settings. The first and the second differ by more than the spread over seeds in 12 of" in large
    assert "in 0 of 12 settings. The first and the second differ by more than the spread over seeds in 0 of" in small
    assert "in about one of twenty cases (studentized range; about, as all schedules share their seeds)" in large


@pytest.mark.parametrize("seeds", [2, 3, 5, 10])
def test_the_limit_is_that_of_so_many_seeds(seeds):
    """The largest difference of the means is set just below and just above it."""
    stats = pytest.importorskip("scipy.stats")
    limit = stats.studentized_range.ppf(0.95, 8, 8 * (seeds - 1)) / math.sqrt(seeds)

    def table(difference):
        spread = statistics.stdev(range(seeds))
        return table_of(
            lambda side, budget, seed: seed / spread + (difference if side == "REX" else 0.0), seeds=range(seeds)
        )

    assert "share their seeds) in 0 of 12 settings" in table(0.99 * limit)
    assert "share their seeds) in 12 of 12 settings" in table(1.01 * limit)


def test_of_one_seed_nothing_is_said_of_chance():
    table = table_of(lambda side, budget, seed: place(side), seeds=(0,), quick=True)
    assert "Bold: the first in its column." in table
    assert "studentized" not in table
    assert "spread over seeds" not in table


def test_more_seeds_than_the_limit_is_known_for_are_no_test():
    table = table_of(lambda side, budget, seed: place(side) + seed, seeds=range(11))
    assert "studentized" not in table
    assert "differ by more than the spread over seeds in 0 of 12" in table


def test_all_that_are_first_are_bold():
    table = table_of(lambda side, budget, seed: 0.0 if side in ("REX", "Linear", "Cosine") else place(side))
    for side in ("REX", "Linear", "Cosine"):
        assert table.count(f"| {side} |" + " **0.00 ± 0.00** |" * 6) == 2
    assert "| Step | 3.00 ± 0.00 |" in table


def test_a_place_that_is_shared_is_said_to_be():
    table = table_of(lambda side, budget, seed: 0.0 if side in ("REX", "Cosine") else place(side))
    assert "REX is first of 8, together with Cosine, at low budgets (mean rank 1.50;" in table


def test_a_schedule_that_diverged_is_last_and_said_to_be():
    table = table_of(lambda side, budget, seed: math.nan if side == "Step" else place(side))
    assert "| Step | diverged |" in table
    assert "| Step | 8.00 | 8.00 | 8.00 | 8.00 | 8.00 |" in table


def test_a_quick_study_with_one_seed_has_its_table_and_figure_too():
    outcome = outcome_of(lambda side, budget, seed: 1.0 + place(side), seeds=(0,), quick=True)
    assert "| REX | **1.00** | **1.00** |" in budget_table(outcome)
    figure = Figure(layout="constrained")
    budget_figure(outcome, figure)
    figure.canvas.draw()


def test_the_figure_has_a_line_for_every_schedule_and_a_bar_for_its_ranks():
    figure = Figure(layout="constrained")
    budget_figure(outcome_of(lambda side, budget, seed: math.nan if side == "Step" else 1.0 + place(side)), figure)
    figure.canvas.draw()
    *panels, ranks = figure.axes
    assert [axes.get_title() for axes in panels] == ["SGD with momentum", "Adam"]
    assert all([line.get_label() for line in axes.lines] == list(SCHEDULES) for axes in panels)
    assert len(ranks.patches) == 2 * len(SCHEDULES)
