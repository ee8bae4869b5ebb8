# SPDX-License-Identifier: Apache-2.0
import itertools
import math
import random

import pytest
from matplotlib.figure import Figure

from lightning_stable.studies import run_picture
from lightning_stable.studies.run_log import RunLog
from lightning_stable.studies.run_picture import draw
from tests.studies.logged_runs import png_size

RESPONSES = ["SkipStep", "ResetMomentum", "ScaleLR", "Rollback", "Halt", "AResponseOfTheirOwn"]


def make_log(folder, count=0, steps=600, nan_from=None, spike=1e4):
    generator = random.Random(0)
    bad = sorted(generator.sample(range(10, steps), count))
    loss = [(step, 2.0 + 4.0 * math.exp(-step / 60) + generator.gauss(0, 0.1)) for step in range(steps)]
    loss = [(step, spike if step in bad else math.nan if nan_from and step >= nan_from else v) for step, v in loss]
    incidents = [{"step": step, "response": RESPONSES[index % 6]} for index, step in enumerate(bad)]
    scalars = {
        "stability/loss": loss,
        "stability/grad_norm": loss,
        "stability/lr": [(0, 1e-3), (steps - 1, 0.0)],
        "val_loss": [(99, 3.0), (199, 2.5)],
        "stability/global_step": [(steps - 1, steps - count)],
    }
    return RunLog(folder, scalars, incidents)


@pytest.fixture
def figure(monkeypatch):
    """The last figure that was drawn, with what it needs to be measured."""
    drawn = []
    save = run_picture.save_picture
    monkeypatch.setattr(run_picture, "save_picture", lambda figure, out: (drawn.append(figure), save(figure, out)))
    return drawn


def texts(figure: Figure):
    return [text.get_text() for text in [*figure.texts, *(t for axes in figure.axes for t in axes.texts)]]


def labels(figure: Figure):
    return [text.get_text() for legend in figure.legends for text in legend.get_texts()]


@pytest.mark.parametrize("compared", [False, True])
@pytest.mark.parametrize("count", [0, 1, 7, 60])
def test_nothing_leaves_the_picture_and_the_file_is_small(tmp_path, figure, count, compared):
    log = make_log(tmp_path / ("a_name_of_more_than_forty_characters_" * 2) / "version_12", count)
    other = make_log(tmp_path / "another_name_of_more_than_forty_characters" / "version_0", nan_from=400)
    out = tmp_path / "report.png"
    draw(log, out, other if compared else None)
    assert png_size(out)[0] == 1200
    assert out.stat().st_size < 300_000
    whole = figure[0].bbox
    for artist in [*figure[0].legends, *figure[0].texts]:
        box = artist.get_window_extent()
        assert box.x0 >= whole.x0
        assert box.x1 <= whole.x1
    assert len(figure[0].legends) == (1 if count == 0 else 2)
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]


def test_legends_do_not_overlap_each_other_nor_the_panels(tmp_path, figure):
    draw(make_log(tmp_path / "run" / "version_0", 60), tmp_path / "report.png", make_log(tmp_path / "b", 0))
    boxes = [artist.get_window_extent() for artist in (*figure[0].texts, *figure[0].legends, figure[0].axes[0])]
    for above, below in itertools.pairwise(boxes):
        assert above.y0 >= below.y1 - 1


def test_a_spike_does_not_flatten_the_curve(tmp_path, figure):
    draw(make_log(tmp_path / "run", 7, spike=1e4), tmp_path / "report.png")
    bottom, top = figure[0].axes[0].get_ylim()
    assert 1.0 < bottom < 2.0
    assert 6.0 < top < 8.0


def test_an_unguarded_spike_does_not_flatten_the_curve_either(tmp_path, figure):
    log = make_log(tmp_path / "run")
    log.scalars["stability/loss"][300] = (300, 1e4)
    draw(log, tmp_path / "report.png")
    assert figure[0].axes[0].get_ylim()[1] < 10


def test_a_second_run_that_diverges_does_not_flatten_the_first(tmp_path, figure):
    other = make_log(tmp_path / "b")
    other.scalars["stability/loss"] = [(step, v + step**2) for step, v in other.scalars["stability/loss"]]
    draw(make_log(tmp_path / "a"), tmp_path / "report.png", other)
    assert figure[0].axes[0].get_ylim()[1] < 13


def test_the_step_from_which_a_run_is_nan_is_written_down(tmp_path, figure):
    log, other = (
        make_log(tmp_path / "a" / "version_0", nan_from=250),
        make_log(tmp_path / "b" / "version_0", nan_from=230),
    )
    draw(log, tmp_path / "report.png", other)
    assert "NaN from step 250" in texts(figure[0])
    assert "b is NaN from step 230" in texts(figure[0])


def test_a_vetoed_step_is_a_mark_and_not_part_of_the_curve(tmp_path, figure):
    log = make_log(tmp_path / "a", 1, spike=4.5)
    step = log.incidents[0]["step"]
    draw(log, tmp_path / "report.png")
    lines = figure[0].axes[0].get_lines()
    curve = max(lines, key=lambda line: len(line.get_xdata()))
    assert step not in curve.get_xdata()
    assert any(list(line.get_xdata()) == [step] and list(line.get_ydata()) == [4.5] for line in lines)


def test_responses_are_counted_mildest_first_and_unknown_ones_last(tmp_path, figure):
    draw(make_log(tmp_path / "a", 60), tmp_path / "report.png")
    assert labels(figure[0])[-6:] == [
        "SkipStep (10)",
        "ResetMomentum (10)",
        "ScaleLR (10)",
        "Rollback (10)",
        "Halt (10)",
        "AResponseOfTheirOwn (10)",
    ]


def test_a_warning_is_a_line_and_its_step_part_of_the_curve(tmp_path, figure):
    log = make_log(tmp_path)
    log.warnings = [{"step": 40, "response": "Warning"}, {"step": 300, "response": "Warning"}]
    draw(log, tmp_path / "report.png")
    assert "warning (2)" in labels(figure[0])
    curve = figure[0].axes[0].lines[1]
    assert {40, 300} <= set(curve.get_xdata())
    dotted = [line for line in figure[0].axes[0].lines if line.get_linestyle() == ":"]
    assert [line.get_xdata()[0] for line in dotted] == [40, 300]


def test_runs_are_told_apart_by_their_versions_if_need_be(tmp_path, figure):
    draw(make_log(tmp_path / "a" / "version_0"), tmp_path / "r.png", make_log(tmp_path / "a" / "version_1"))
    assert labels(figure[0])[::2] == ["a/version_0", "a/version_1"]


def test_the_subtitle_tells_steps_that_count_from_steps_tried(tmp_path, figure):
    draw(make_log(tmp_path / "a", 7), tmp_path / "r.png")
    draw(make_log(tmp_path / "a"), tmp_path / "r.png")
    assert "593 optimizer steps of 600 tried, 7 incidents (marks: steps that the guard undid)" in texts(figure[0])
    assert "600 optimizer steps, 0 incidents" in texts(figure[1])


@pytest.mark.parametrize(
    "scalars",
    [
        {},
        {"train_loss": [(0, 1.0)]},
        {"train_loss": [(0, math.nan)]},
        {"train_loss": [(0, 2.0), (1, 2.0)], "grad_norm": [(0, 0.0), (1, 0.0)]},
        {"grad_norm": [(0, math.inf), (5, 1e30), (6, math.nan), (9, 1.0)]},
        {"val_loss": [(0, math.nan)]},
    ],
)
def test_runs_with_hardly_anything_in_them_are_drawn(tmp_path, scalars):
    incidents = [{"step": 3, "response": "SkipStep"}]
    draw(RunLog(tmp_path / "a", scalars, incidents), tmp_path / "a.png", RunLog(tmp_path / "b", scalars))
    assert png_size(tmp_path / "a.png")[0] == 1200


def test_a_picture_that_cannot_be_written_leaves_no_litter(tmp_path, monkeypatch):
    def full(self, *_, **__):
        raise OSError(28, "No space left on device")

    (tmp_path / "report.png").write_text("the last one")
    monkeypatch.setattr(Figure, "savefig", full)
    with pytest.raises(OSError, match="No space left"):
        draw(make_log(tmp_path / "a"), tmp_path / "report.png")
    assert [path.name for path in tmp_path.iterdir()] == ["report.png"]
    assert (tmp_path / "report.png").read_text() == "the last one"
