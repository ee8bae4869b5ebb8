# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest
from matplotlib.figure import Figure

from lightning_stable.studies import replay_picture
from lightning_stable.studies.curve import Curve, counted
from lightning_stable.studies.detector_choice import choose_detector
from lightning_stable.studies.replay import replay
from lightning_stable.studies.replay_picture import draw, thin_out
from tests.studies.logged_runs import png_size

PAIR = ("MedianDeviation(min_ratio=1.05)", "LevelShift(block=10)")


@pytest.fixture
def figure(monkeypatch):
    """The figures that were drawn, with what it needs to measure them."""
    drawn = []
    save = replay_picture.save_picture
    monkeypatch.setattr(replay_picture, "save_picture", lambda figure, out: (drawn.append(figure), save(figure, out)))
    return drawn


def replays(curve, *texts):
    choices = [choose_detector(text) for text in texts or PAIR]
    return [replay(choice.label, choice.build(), curve) for choice in choices]


def noisy(length, level=2.0):
    values = level + np.exp(-counted(length) / length * 20) + np.random.default_rng(0).normal(0, 0.05, length)
    return Curve("loss", counted(length), values)


def marks(axes, marker):
    lines = [line for line in axes.get_lines() if line.get_marker() == marker and line.get_linestyle() == "None"]
    return [point for line in lines for point in zip(line.get_xdata(), line.get_ydata(), strict=True)]


def texts(figure: Figure):
    return [text.get_text() for axes in figure.axes for text in axes.texts]


@pytest.mark.parametrize("length", [100, 1_000_000])
def test_every_spike_is_marked_however_long_the_curve_is(tmp_path, figure, length):
    curve = noisy(length)
    spikes = np.linspace(0.5 * length, 0.95 * length, 7).astype(int)
    curve.values[spikes] = 3.1 + 0.05 * np.arange(7) if length > 100 else 8.0
    draw(replays(curve), "loss of x", tmp_path / "x.png")
    axes = figure[0].axes[0]
    assert [int(x) for x, _ in marks(axes, "o")] == spikes.tolist()
    longest = max(axes.get_lines(), key=lambda line: len(line.get_xdata()))
    assert set(spikes.tolist()) <= set(longest.get_xdata().astype(int).tolist())
    assert len(longest.get_xdata()) <= 4 * 1100
    assert png_size(tmp_path / "x.png")[0] == 1200
    assert (tmp_path / "x.png").stat().st_size < 300_000
    assert [path.name for path in tmp_path.iterdir()] == ["x.png"]


def test_there_is_a_panel_for_each_detector_with_its_name_and_its_alarms(tmp_path, figure):
    curve = noisy(3000)
    curve.values[2000:2003] = 9.0
    curve.values[2500:] += 0.9
    draw(replays(curve, *PAIR, "Above(limit=50)", "AllOf", "NonFinite"), "loss of x", tmp_path / "x.png")
    panels = figure[0].axes
    assert [axes.get_title(loc="left") for axes in panels] == [*PAIR, "Above(limit=50.0)", "AllOf()", "NonFinite()"]
    assert panels[0].get_title(loc="right") == "19 alarms in 2 streaks"
    assert panels[1].get_title(loc="right") == "2 alarms in 2 streaks"
    assert [axes.get_title(loc="right") for axes in (panels[2], panels[4])] == ["no alarms", "no limit on this curve"]
    assert "step 2000: 9" in texts(figure[0]) or "step 2000" in texts(figure[0])


def test_nothing_leaves_the_picture_nor_overlaps_above_the_panels(tmp_path, figure):
    curve = noisy(500)
    curve.values[100::40] = 50.0
    many = [replay(each.label * 20, choose_detector(text).build(), curve) for text, each in
            zip(PAIR, replays(curve), strict=True)]  # fmt: skip
    draw(many, "a_long_name_of_a_column " * 10, tmp_path / "x.png")
    whole = figure[0].bbox
    artists = [*figure[0].texts, *figure[0].legends, *(text for axes in figure[0].axes for text in axes.texts)]
    boxes = [artist.get_window_extent() for artist in artists]
    assert all(box.x0 >= whole.x0 and box.x1 <= whole.x1 and box.y1 <= whole.y1 for box in boxes)
    head, counted_line, legend = boxes[0], boxes[1], boxes[2]
    assert head.y0 >= legend.y1
    assert counted_line.x1 <= legend.x0


def test_the_axis_is_logarithmic_where_values_span_decades_and_only_there(tmp_path, figure):
    values = 10 ** np.random.default_rng(0).normal(0, 0.5, 2000)
    values[500], values[1000] = 1e4, 1e30
    for curve in (Curve("a", counted(2000), values), noisy(2000), Curve("a", counted(2000), values - 1.0)):
        draw(replays(curve), "a", tmp_path / "x.png")
    assert [drawn.axes[0].get_yscale() for drawn in figure] == ["log", "linear", "linear"]
    bottom, top = figure[0].axes[0].get_ylim()
    assert bottom < values.min()
    assert 1e4 < top < 1e8
    assert marks(figure[0].axes[0], "^") == [(1000.0, top)]
    assert "step 1000: 1e+30" in texts(figure[0])


def test_neither_the_first_steps_nor_one_spike_flatten_the_curve(tmp_path, figure):
    curve = noisy(20_000)
    curve.values[:200] += 9.0
    curve.values[10_000] = 500.0
    draw(replays(curve), "a", tmp_path / "x.png")
    for axes in figure[0].axes:
        bottom, top = axes.get_ylim()
        assert bottom < 2.0
        assert top < 5.0
    assert (10_000.0, figure[0].axes[0].get_ylim()[1]) in marks(figure[0].axes[0], "^")


def test_nan_is_a_gap_in_the_curve_and_a_mark_at_the_edge(tmp_path, figure):
    curve = noisy(300)
    curve.values[200:203] = [np.nan, np.inf, -np.inf]
    draw(replays(curve), "a", tmp_path / "x.png")
    for axes in figure[0].axes:
        assert [x for x, _ in marks(axes, "X")] == [200, 201, 202]
        assert {y for _, y in marks(axes, "X")} == {axes.get_ylim()[1]}
        drawn = max(axes.get_lines(), key=lambda line: len(line.get_xdata())).get_ydata()
        assert np.isnan(drawn[200:203]).all()


def test_the_level_is_drawn_with_its_limit_and_the_alarm_on_it(tmp_path, figure):
    curve = noisy(2000)
    curve.values[1500:] += 1.0
    found = replays(curve, "LevelShift(block=10)")
    draw(found, "a", tmp_path / "x.png")
    ((x, y),) = marks(figure[0].axes[0], "o")
    assert x == found[0].alarms[0]
    assert y == found[0].judged[found[0].alarms[0]] > found[0].limit[found[0].alarms[0]]


def test_where_steps_go_back_the_values_stand_in_the_order_of_writing(tmp_path, figure):
    curve = Curve("loss", np.concatenate([counted(300), counted(300) + 200]), noisy(600).values)
    curve.values[350] = 9.0
    draw(replays(curve), "a", tmp_path / "x.png")
    axes = figure[0].axes[0]
    assert [x for x, _ in (*marks(axes, "o"), *marks(axes, "^"))] == [350]
    assert any("step 250" in text for text in texts(figure[0]))
    assert "order of writing" in figure[0].axes[-1].get_xlabel()
    assert any(list(line.get_xdata()) == [300, 300] for line in axes.get_lines())


@pytest.mark.parametrize(
    "values",
    [
        [1.0],
        [np.nan],
        [np.nan] * 9,
        [np.inf, 1.0],
        [0.0] * 5,
        [2.0] * 5000,
        [-1e300, 1e300],
        [1e-320, 1e308],
        [-3.0, -2],
    ],
)
def test_curves_with_hardly_anything_in_them_are_drawn(tmp_path, values):
    curve = Curve("loss", counted(len(values)), np.array(values))
    draw(replays(curve, *PAIR, "Ratio"), "a", tmp_path / "x.png")
    same_step = Curve("loss", np.zeros(len(values)), np.array(values))
    draw(replays(same_step), "a", tmp_path / "x.png")
    assert png_size(tmp_path / "x.png")[0] == 1200


def test_thousands_of_alarms_are_thinned_out_to_the_highest_of_each_pixel(tmp_path, figure):
    values = np.tile([1.0, 3.0], 20_000)
    values[20_001] = 4.0
    draw(replays(Curve("loss", counted(40_000), values), "Above(limit=2)"), "a", tmp_path / "x.png")
    shown = marks(figure[0].axes[0], "o") + marks(figure[0].axes[0], "^")
    assert 1000 < len(shown) <= 1101
    assert 20_001.0 in [x for x, _ in shown]


def test_thinning_keeps_first_smallest_largest_and_last_of_each_column():
    generator = np.random.default_rng(0)
    x = np.cumsum(generator.exponential(1.0, 50_000))
    y = generator.normal(0, 1, 50_000)
    y[generator.integers(0, 50_000, 2000)] = np.nan
    thin_x, thin_y = thin_out(x, y, columns=100)
    assert len(thin_x) <= 400
    column = np.minimum((x - x[0]) / (x[-1] - x[0]) * 100, 99).astype(int)
    kept = np.minimum((thin_x - x[0]) / (x[-1] - x[0]) * 100, 99).astype(int)
    for place in range(100):
        whole, thin = y[column == place], thin_y[kept == place]
        assert np.nanmin(whole) == np.nanmin(thin)
        assert np.nanmax(whole) == np.nanmax(thin)
        assert np.array_equal(thin[[0, -1]], whole[[0, -1]], equal_nan=True)
    assert all(before <= after for before, after in itertools.pairwise(thin_x))


def test_a_column_of_nan_alone_is_a_gap():
    y = np.ones(10_000)
    y[4000:6000] = np.nan
    thin_x, thin_y = thin_out(counted(10_000), y, columns=100)
    assert np.isnan(thin_y[(thin_x >= 4000) & (thin_x < 6000)]).all()
    assert not np.isnan(thin_y[(thin_x < 4000) | (thin_x >= 6000)]).any()
