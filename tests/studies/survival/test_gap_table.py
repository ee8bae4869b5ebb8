# SPDX-License-Identifier: Apache-2.0
import math

from lightning_stable.studies.survival.gap_table import survival_table
from tests.studies.survival.outcomes import CLEAN, MIXED, outcome, three_sides


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


def test_every_side_is_described():
    table = survival_table(three_sides())
    assert "- **SpikeGuard, skip**: " in table
    assert "3 of them lost" in table


def test_all_that_are_equally_good_are_in_bold():
    losses = {("guard_skip", CLEAN): [2.0], ("guard_rollback", CLEAN): [2.0], ("full", CLEAN): [2.0],
              ("guard_skip", MIXED): [2.1], ("guard_rollback", MIXED): [2.1], ("full", MIXED): [2.2]}  # fmt: skip
    found = rows(survival_table(outcome(losses)), "## Gap")
    assert [found[title] for title in ("SpikeGuard, skip", "SpikeGuard, rollback", "full recipe")] == [
        ["**0.100**"],
        ["**0.100**"],
        ["0.200"],
    ]


def test_what_it_says_is_a_table():
    found = rows(survival_table(three_sides()), "## What it says")
    assert list(found)[2:4] == ["mixed, 5 %", "NaN, 0.5 %"]


def test_a_failed_clean_run_costs_its_side_a_gap_and_nobody_the_table():
    runs = outcome({("adamw", CLEAN): [2.0, math.nan], ("adamw", MIXED): [2.1, 2.2], ("full", CLEAN): [2.0, 2.0],
                    ("full", MIXED): [2.2, 2.2]})  # fmt: skip
    found = rows(survival_table(runs), "## Gap")
    assert found["AdamW"] == ["no reference for 1 of 2, else 0.100"]
    assert found["full recipe"] == ["**0.200 ± 0.000**"]
