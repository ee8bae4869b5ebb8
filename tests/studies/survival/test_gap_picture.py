# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.studies.engine.outcome import Outcome
from lightning_stable.studies.survival.gap_picture import draw_gaps
from lightning_stable.studies.survival.gaps import gaps
from tests.studies.survival.outcomes import MIXED, NAN, three_sides

figures = pytest.importorskip("matplotlib.figure")


@pytest.fixture
def figure():
    figure = figures.Figure()
    draw_gaps(three_sides(), figure)
    return figure


def test_a_panel_for_each_corrupted_stream_and_a_row_for_each_side(figure):
    assert [axes.get_title() for axes in figure.axes] == ["mixed\n5 %", "NaN\n0.5 %"]
    labels = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert labels == ["AdamW", "SpikeGuard, skip", "SpikeGuard, rollback", "full recipe"]


@pytest.mark.parametrize(("panel", "stream"), [(0, MIXED), (1, NAN)])
def test_a_dot_for_each_run_that_survived_and_a_cross_with_the_number_of_the_lost(figure, panel, stream):
    found = gaps(three_sides(), stream)
    lines = figure.axes[panel].lines
    dots = [value for line in lines if line.get_marker() == "o" for value in line.get_xdata()]
    assert sorted(dots) == sorted(value for gap in found.values() for value in gap.survived.values())
    crosses = [line.get_ydata()[0] for line in lines if line.get_marker() == "x"]
    assert crosses == [0]
    assert [text.get_text() for text in figure.axes[panel].texts] == [str(found["adamw"].lost)]


def test_lost_runs_are_beyond_all_others(figure):
    for axes in figure.axes:
        [cross] = [line.get_xdata()[0] for line in axes.lines if line.get_marker() == "x"]
        assert cross > max(value for line in axes.lines if line.get_marker() == "o" for value in line.get_xdata())
        assert axes.get_xticklabels()[-1].get_text() == "lost"


def test_it_can_be_saved(figure, tmp_path):
    figure.savefig(tmp_path / "figure.png")
    assert (tmp_path / "figure.png").stat().st_size > 0


def test_nothing_is_drawn_of_nothing():
    figure = figures.Figure()
    draw_gaps(Outcome([], "loss"), figure)
    assert not figure.axes
