# SPDX-License-Identifier: Apache-2.0
import math

from lightning_stable.studies.survival.gap_table import survival_table, verdicts
from lightning_stable.studies.survival.gaps import Gap, gaps
from tests.studies.survival.outcomes import CLEAN, MIXED, NAN, outcome, three_sides


def rows(table, heading):
    """The cells of the table below `heading`, by their first column."""
    lines = table.partition(heading)[2].splitlines()
    cells = [[cell.strip() for cell in line.strip("|").split("|")] for line in lines if line.startswith("|")]
    return {row[0]: row[1:] for row in cells[: len(three_sides().sides) + 2]}


def test_gaps_stand_with_their_spread_and_the_smallest_in_bold():
    found = rows(survival_table(three_sides()), "## Gap")
    assert found["side"] == ["mixed, 5 %", "NaN, 0.5 %"]
    assert found["AdamW"] == ["lost 1 of 2, else 0.200", "lost 2 of 2"]
    assert found["full recipe"] == ["**0.020 ± 0.014**", "0.060 ± 0.000"]
    assert found["SpikeGuard, skip"] == ["0.040 ± 0.014", "**0.010 ± 0.014**"]


def test_final_losses_are_of_clean_streams_too():
    found = rows(survival_table(three_sides()), "## Final validation loss")
    assert found["side"][0] == "clean"
    assert found["full recipe"] == ["2.150 ± 0.071", "2.170 ± 0.085", "2.210 ± 0.071"]
    assert found["AdamW"][1:] == ["lost 1 of 2, else 2.200", "lost 2 of 2"]


def test_what_was_lost_on_the_way_is_said():
    found = rows(survival_table(three_sides()), "## Optimizer steps")
    assert found["SpikeGuard, skip"] == ["12 ± 0; 1.2 s", "12 ± 0; 1.2 s"]


def test_it_says_where_the_full_recipe_is_not_the_best_and_whether_rollback_is_worse():
    runs = three_sides()
    assert verdicts({stream: gaps(runs, stream) for stream in (MIXED, NAN)}) == [
        "mixed, 5 %: the full recipe has the smallest gap, 0.020 ± 0.014; next is SpikeGuard, skip, 0.040 ± 0.014.",
        "mixed, 5 %: rollback is exactly skip-only.",
        "NaN, 0.5 %: the full recipe, 0.060 ± 0.000, is number 2 of 4; SpikeGuard, skip has the smallest gap, "
        "0.010 ± 0.014, a difference beyond the spread.",
        "NaN, 0.5 %: rollback is worse than skip-only, 0.410 ± 0.014 to 0.010 ± 0.014.",
    ]


def test_a_difference_within_the_spread_is_called_so():
    found = {"full": Gap({0: 0.02, 1: 0.06}), "clip": Gap({0: 0.02, 1: 0.04})}
    [line] = verdicts({MIXED: found})
    assert line.endswith("has the smallest gap, 0.030 ± 0.014, a difference within the spread.")


def test_runs_that_the_full_recipe_alone_loses_are_said():
    [line] = verdicts({MIXED: {"full": Gap({0: 0.02}, 1), "clip": Gap({0: 0.2, 1: 0.4})}})
    assert line.endswith("with 1 fewer of its runs lost.")


def test_every_side_is_described():
    table = survival_table(three_sides())
    assert "- **SpikeGuard, skip**: " in table
    assert "3 of them lost" in table


def test_of_one_seed_nothing_is_said_of_the_spread():
    [line] = verdicts({MIXED: {"full": Gap({0: 0.02}), "clip": Gap({0: 0.01})}})
    assert line.endswith("has the smallest gap, 0.010.")


def test_a_failed_clean_run_costs_its_side_a_gap_and_nobody_the_table():
    runs = outcome({("adamw", CLEAN): [2.0, math.nan], ("adamw", MIXED): [2.1, 2.2], ("full", CLEAN): [2.0, 2.0],
                    ("full", MIXED): [2.2, 2.2]})  # fmt: skip
    found = rows(survival_table(runs), "## Gap")
    assert found["AdamW"] == ["no reference for 1 of 2, else 0.100"]
    assert found["full recipe"] == ["**0.200 ± 0.000**"]
