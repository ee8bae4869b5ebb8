# SPDX-License-Identifier: Apache-2.0
import math

import yaml

from lightning_stable.guard.defaults import default_ladder
from lightning_stable.studies.recipes import find_recipe
from lightning_stable.studies.survival.gap_table import survival_table
from lightning_stable.studies.survival.sides import SIDES
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


def recipe(name):
    return yaml.safe_load(find_recipe(name).path.read_text(encoding="utf-8"))


def test_the_numbers_of_the_runs_are_said_and_so_are_those_of_the_recipes():
    table = survival_table(three_sides())
    assert "2 blocks of 64 channels, 64 bytes of context and 16 samples" in table
    assert "over 40 steps to 0.002, then falls by REX" in table
    assert "every 200 steps, with 20 of warm-up but for Stable-SPAM" in table
    for name in ("charlm_adamw", "charlm_spam", "charlm_stable_spam", "charlm_stable"):
        model = recipe(name)["model"]["init_args"]
        assert f"{model['n_layer']} blocks of {model['d_model']} channels, a learning rate of {model['lr']:g}" in table
        assert ("lr_scheduler" in recipe(name)) == (name == "charlm_stable")
    for name, interval in (("charlm_spam", 250), ("charlm_stable_spam", 500)):
        assert recipe(name)["optimizer"]["init_args"]["reset_interval"] == interval
    assert "a reset every 250 (`charlm_stable_spam`: 500)" in table


def test_the_ladder_of_the_full_recipe_is_said():
    assert "ten skips, two rollbacks without replay, two halvings of the learning rate, a halt" in survival_table(
        three_sides()
    )
    skip, rollback, scale, halt = default_ladder()
    assert (skip.times, rollback.times, rollback.mode, scale.times, scale.factor, halt.halts) == (
        10, 2, "skip", 2, 0.5, True,
    )  # fmt: skip


def test_no_side_claims_all_the_numbers_of_a_recipe():
    assert "with the numbers of" not in survival_table(three_sides())
    assert not [side.name for side in SIDES.values() if "numbers of the recipe" in side.what]
