# SPDX-License-Identifier: Apache-2.0
"""What a study leaves behind."""

import csv
import math

import pytest

from lightning_stable.studies.engine.outcome import Outcome, Result
from lightning_stable.studies.engine.report import (
    draw_figure,
    markdown_table,
    mean_and_spread,
    write_results,
    write_table,
)
from tests.studies.engine.toy_study import ToyStudy

FAILURE = 'RuntimeError: no | \x1b[31mred, "quoted"\nand more'


@pytest.fixture
def study():
    return ToyStudy()


def outcome_of(study, failing=()):
    results = [
        Result(trial, error=FAILURE, seconds=1.0)
        if index in failing
        else Result(trial, {"loss": trial.tuning["x"] ** 2 + 0.01 * trial.seed}, seconds=2.0)
        for index, trial in enumerate(study.trials((0, 1, 2), quick=False))
    ]
    return Outcome(results, study.objective)


def test_the_table_says_the_question_the_budget_and_the_command(study, tmp_path):
    text = write_table(study, outcome_of(study), "lightning-stable study toy", tmp_path)
    assert (tmp_path / "table.md").read_text() == text
    assert text.startswith("# Study `toy`\n\nWhich parabola is lower?\n\n")
    assert "each of the 2 sides has 3 points of x x 3 seeds (0, 1, 2) = 9 runs in each setting (2); 36 runs" in text
    assert "Made by `lightning-stable study toy`." in text
    assert "Means: narrow" in text
    assert "Failed" not in text
    assert "edge" not in text


def test_failed_runs_are_named_in_the_table(study, tmp_path):
    text = write_table(study, outcome_of(study, failing=range(12)), "x", tmp_path)
    assert "**Failed: 12 runs**" in text
    assert "- narrow noise=0.0 x=-1.0 seed=0: RuntimeError: no" in text
    assert "- and 2 more: see `results.csv`" in text
    assert "\x1b" not in text


def test_a_choice_at_the_edge_is_said(study, tmp_path):
    results = [Result(trial, {"loss": trial.tuning["x"]}) for trial in study.trials((0,), quick=False)]
    text = write_table(study, Outcome(results, "loss"), "x", tmp_path)
    assert "the best may lie outside: narrow 2 of 2; wide 2 of 2 settings." in text


def test_every_run_is_a_row_and_the_chosen_ones_are_marked(study, tmp_path):
    write_results(outcome_of(study, failing=[0]), tmp_path)
    with (tmp_path / "results.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 36
    assert list(rows[0]) == ["side", "noise", "x", "seed", "chosen", "loss", "seconds", "failed_with"]
    assert {row["x"] for row in rows if row["chosen"] == "1"} == {"0.25"}
    assert rows[0]["failed_with"] == FAILURE
    assert (rows[0]["loss"], rows[1]["loss"], rows[1]["seconds"]) == ("", "1.01", "2.000")


def test_the_figure_is_a_png_and_nothing_else_is_left(study, tmp_path):
    draw_figure(study, outcome_of(study), tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["figure.png"]
    assert (tmp_path / "figure.png").read_bytes().startswith(b"\x89PNG")


def test_a_cell_cannot_break_its_table():
    assert markdown_table(["a|b"], [["c\n| d"]]) == "| a\\|b |\n| --- |\n| c\\n\\| d |"


@pytest.mark.parametrize(
    ("mean", "spread", "text"),
    [
        (1.25, 0.5, "1.2 ± 0.5"),
        (1.25, math.nan, "1.2"),
        (math.nan, math.nan, "diverged"),
        (math.inf, math.nan, "diverged"),
    ],
)
def test_a_mean_and_its_spread(mean, spread, text):
    assert mean_and_spread(mean, spread, digits=1) == text
