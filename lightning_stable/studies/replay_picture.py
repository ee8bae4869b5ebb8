# SPDX-License-Identifier: Apache-2.0
"""The picture of a replay: the curve once per detector, with its limit and its alarms.

However many values there are, no spike is lost: of the values that share a column of pixels the smallest and the
largest are drawn. Alarms above the panel, and those at NaN and infinity, are marks at its upper edge.
"""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FuncFormatter, LogLocator, MaxNLocator, NullFormatter
from numpy.typing import NDArray

from lightning_stable.studies.curve import Curve, counted
from lightning_stable.studies.pictures import CURVE, FAINT_TEXT, NOT_FINITE, TEXT, label, save_picture, style_axes
from lightning_stable.studies.replay import Floats, Replay

_BEHIND, _LIMIT, _ALARM = "#a9bcd3", "#e69f00", "#d55e00"
_WIDTH, _LEFT, _RIGHT = 12.0, 0.065, 0.97  # inches, and parts of them
_HEADER, _PANEL, _GAP, _FOOTER = 1.05, 2.7, 0.55, 0.6  # inches
_COLUMNS = 1100  # pixels that a panel is wide
_DECADES, _USUAL_DECADES = 2.0, 0.5  # of all values, and of 96 % of them, from which on the axis is logarithmic
_MOST_DECADES = 6.0  # above the middle of the values
_LARGEST = 1e100
_MOST_STEPS_NAMED, _MOST_STREAKS_TRIED = 3, 100
_LONGEST_TITLE = 110


def draw(replays: Sequence[Replay], title: str, out: Path) -> None:
    """Draw replays of one curve into the PNG `out`, which is either whole or not there.

    Args:
        replays: At least one.
        title: What stands above.
        out: The PNG file, 1200 pixels wide.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning_stable.detectors import Above
        >>> from lightning_stable.studies.replay import replay
        >>> curve = Curve("loss", np.arange(3.0), np.array([1.0, 3.0, 1.0]))
        >>> with TemporaryDirectory() as folder:
        ...     draw([replay("Above(limit=2.0)", Above(2.0), curve)], "loss", Path(folder, "detect.png"))
        ...     [path.name for path in Path(folder).iterdir()]
        ['detect.png']
    """
    curve = replays[0].curve
    rewound = len(curve.rewinds) > 0
    x = counted(len(curve)) if rewound else curve.steps
    height = _HEADER + len(replays) * (_PANEL + _GAP) - _GAP + _FOOTER
    figure = Figure(figsize=(_WIDTH, height), dpi=100, facecolor="white")
    panels = figure.subplots(len(replays), 1, sharex=True, squeeze=False)[:, 0]
    top, bottom = 1 - _HEADER / height, _FOOTER / height
    figure.subplots_adjust(left=_LEFT, right=_RIGHT, top=top, bottom=bottom, hspace=_GAP / _PANEL)
    for axes, replay in zip(panels, replays, strict=True):
        _panel(axes, replay, x)
    last = panels[-1]
    last.set_xlabel("values in the order of writing; grey lines: back to an earlier step" if rewound else "step",
                    color=FAINT_TEXT)  # fmt: skip
    last.xaxis.set_major_locator(MaxNLocator(integer=True))
    last.xaxis.set_major_formatter(
        FuncFormatter(lambda value, _: f"{value:,.6g}" if abs(value) < 1e6 else f"{value:,.0f}")
    )
    last.set_xlim(*_span(x))
    _head(figure, curve, title, height)
    save_picture(figure, out)


def _panel(axes: Axes, replay: Replay, x: Floats) -> None:
    curve = replay.curve
    bottom, top = _fit(axes, replay)
    axes.set_ylim(bottom, top)
    for index in curve.rewinds[:200]:
        axes.axvline(float(x[index]), color="#ced4da", lw=1.0, zorder=1)
    line = thin_out(x, _drawable(curve.values))
    few = len(curve) <= 200
    axes.plot(*line, color=_BEHIND if replay.judges_level else CURVE, lw=1.2 if few else 0.9,
              marker="o" if few else None, ms=2.5, zorder=2)  # fmt: skip
    if replay.judges_level:
        at = np.flatnonzero(np.isfinite(replay.judged))
        axes.plot(
            x[at],
            _drawable(replay.judged[at]),
            color=CURVE,
            lw=1.7,
            marker="o" if len(at) < 40 else None,
            ms=3,
            zorder=3,
        )
        axes.plot(x[at], _drawable(replay.limit[at]), color=_LIMIT, lw=1.6, zorder=4)
    else:
        _draw_limit(axes, x, replay.limit)
    _mark_alarms(axes, replay, x, top)
    axes.set_title(_short(replay.label), loc="left", fontsize=11, fontweight="bold", color=TEXT, pad=9)
    axes.set_title(_verdict(replay), loc="right", fontsize=10, pad=9,
                   color=_ALARM if len(replay.alarms) else FAINT_TEXT)  # fmt: skip
    axes.set_ylabel(_short(curve.column, 30), color=FAINT_TEXT)
    axes.yaxis.set_label_coords(-0.042, 0.5)
    style_axes(axes)


def _draw_limit(axes: Axes, x: Floats, limit: Floats) -> None:
    """As a line; where many values share a pixel, their median, with all of them as a shade around it."""
    finite = _drawable(limit)
    if not np.isfinite(finite).any():
        return
    columns = _column_of(x)
    if len(x) <= 2 * _COLUMNS:
        axes.plot(x, finite, color=_LIMIT, lw=1.4, zorder=3)
        return
    known = np.isfinite(finite)
    order = np.argsort(columns[known], kind="stable")
    groups = np.split(finite[known][order], np.flatnonzero(np.diff(columns[known][order])) + 1)
    at = _center_of(np.unique(columns[known]), x)
    low, middle, high = np.array([np.quantile(group, (0.0, 0.5, 1.0)) for group in groups]).T
    axes.fill_between(at, low, high, color=_LIMIT, alpha=0.22, lw=0, zorder=3)
    axes.plot(at, middle, color=_LIMIT, lw=1.3, zorder=3.5)


def thin_out(x: Floats, y: Floats, columns: int = _COLUMNS) -> tuple[Floats, Floats]:
    """The points of a curve that can be seen: of each column of pixels the first, smallest, largest and last.

    Args:
        x: Never falling.
        y: NaN where the curve is interrupted.
        columns: Pixels that the curve is wide.

    Example:
        >>> x, y = thin_out(np.arange(1000.0), np.where(np.arange(1000) == 777, 9.0, 1.0), columns=10)
        >>> len(x) <= 40, float(y.max()), float(x[y.argmax()])
        (True, 9.0, 777.0)
    """
    if len(x) <= 4 * columns:
        return x, y
    places = _column_of(x, columns)
    starts = np.flatnonzero(np.diff(places, prepend=-1))
    ends = np.append(starts[1:], len(x)) - 1
    keep = [starts, ends]
    missing = np.isnan(y)
    for filled, best in ((np.where(missing, np.inf, y), np.minimum), (np.where(missing, -np.inf, y), np.maximum)):
        extreme = np.repeat(best.reduceat(filled, starts), ends - starts + 1)
        hits = np.flatnonzero(filled == extreme)
        keep.append(hits[np.unique(places[hits], return_index=True)[1]])
    kept = np.unique(np.concatenate(keep))
    return x[kept], y[kept]


def _mark_alarms(axes: Axes, replay: Replay, x: Floats, top: float) -> None:
    values = replay.judged[replay.alarms]
    finite = np.isfinite(values)
    inside = finite & (values <= top)
    for chosen, marker, colour, size in (
        (inside, "o", _ALARM, 6.0),
        (finite & ~inside, "^", _ALARM, 7.5),
        (~finite, "X", NOT_FINITE, 7.0),
    ):
        at = _highest_per_column(x[replay.alarms[chosen]], values[chosen], _span(x))
        height = np.minimum(at[1], top) if marker != "X" else np.full(len(at[0]), top)
        axes.plot(at[0], height, marker, color=colour, ms=size, mec="white", mew=0.7, clip_on=False, zorder=6)
    _name_steps(axes, replay, x, top)


def _name_steps(axes: Axes, replay: Replay, x: Floats, top: float) -> None:
    """Write steps next to the marks of the worst streaks, where there is room; and values that are above the panel."""
    low, high = _span(x)
    named: list[float] = []
    streaks = sorted(replay.streaks, key=lambda streak: -replay.scan.score[streak.first])
    for streak in streaks[:_MOST_STREAKS_TRIED]:
        at, value = float(x[streak.first]), float(replay.judged[streak.first])
        if len(named) == _MOST_STEPS_NAMED or any(abs(at - other) < 0.16 * (high - low) for other in named):
            continue
        named.append(at)
        finite, late = np.isfinite(value), at > low + 0.8 * (high - low)
        axes.annotate(
            f"step {replay.curve.steps[streak.first]:.10g}" + (f": {value:.4g}" if finite and value > top else ""),
            (at, min(value, top) if finite else top),
            xytext=(-8 if late else 8, 0),
            textcoords="offset points",
            ha="right" if late else "left",
            va="center",
            fontsize=9,
            color=_ALARM if finite else NOT_FINITE,
            bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.75, "pad": 1.0},
            zorder=5,
        )


def _highest_per_column(x: Floats, y: Floats, span: tuple[float, float]) -> tuple[Floats, Floats]:
    if len(x) <= _COLUMNS:
        return x, y
    columns = np.minimum((x - span[0]) / (span[1] - span[0]) * _COLUMNS, _COLUMNS - 1).astype(np.int64)
    order = np.lexsort((-np.where(np.isfinite(y), y, np.inf), columns))
    first = order[np.unique(columns[order], return_index=True)[1]]
    return x[first], y[first]


def _fit(axes: Axes, replay: Replay) -> tuple[float, float]:
    """Choose the axis, so that neither the first steps of a run nor one absurd value flatten the rest."""
    values = np.sort(_drawable(replay.curve.values[np.isfinite(replay.curve.values)]))
    if not len(values):
        axes.set_yticks([])
        return 0.0, 1.0
    low, middle, high = values[0], values[len(values) // 2], values[-1]
    usual_low, usual = values[int(0.02 * (len(values) - 1))], values[int(0.98 * (len(values) - 1))]
    if low > 0 and _decades(low, high) >= _DECADES and _decades(usual_low, usual) >= _USUAL_DECADES:
        axes.set_yscale("log")
        axes.yaxis.set_major_locator(LogLocator(numticks=7))
        axes.yaxis.set_minor_formatter(NullFormatter())
        return low / 1.3, min(1.5 * high, middle * 10**_MOST_DECADES)
    if replay.judges_level and np.isfinite(replay.judged).any():
        return _around(values[int(0.005 * len(values))], _highest_of(replay, usual, middle))
    if high - middle > 4 * (usual - middle):
        high = min(high, _highest_of(replay, middle + 1.6 * (usual - middle), middle))
    return _around(low, high)


def _drawable(values: Floats) -> Floats:
    """NaN where a value is not finite; and nothing so large that its differences could not be told."""
    return np.where(np.isfinite(values), np.clip(values, -_LARGEST, _LARGEST), np.nan)


def _decades(low: float, high: float) -> float:
    return float(np.log10(high) - np.log10(low))


def _highest_of(replay: Replay, usual: float, middle: float) -> float:
    """`usual`, or the alarms and limits above it that are not out of all proportion."""
    proportion = middle + 4 * (usual - middle)
    levels = _drawable(np.concatenate([replay.judged[replay.alarms], replay.limit]))
    levels = levels[levels <= proportion]
    return max(usual, float(np.quantile(levels, 0.98))) if len(levels) else usual


def _around(low: float, high: float) -> tuple[float, float]:
    margin = 0.06 * (high - low) or 0.05 * abs(high) or 0.5
    return low - margin, high + margin


def _column_of(x: Floats, columns: int = _COLUMNS) -> NDArray[np.int64]:
    low, high = _span(x)
    return np.minimum((x - low) / (high - low) * columns, columns - 1).astype(np.int64)


def _center_of(places: NDArray[np.int64], x: Floats) -> Floats:
    low, high = _span(x)
    return low + (places + 0.5) / _COLUMNS * (high - low)


def _span(x: Floats) -> tuple[float, float]:
    low, high = float(x.min()), float(x.max())
    return (low, high) if high > low else (low - 0.5, high + 0.5)


def _verdict(replay: Replay) -> str:
    alarms, streaks = len(replay.alarms), len(replay.streaks)
    if not alarms:
        return "no limit on this curve" if replay.had_no_limit else "no alarms"
    return f"{alarms:,} alarm{'s' * (alarms > 1)} in {streaks:,} streak{'s' * (streaks > 1)}"


def _head(figure: Figure, curve: Curve, title: str, height: float) -> None:
    figure.text(_LEFT, 1 - 0.34 / height, _short(title, 80), fontsize=16, fontweight="bold", color=TEXT)
    counted = f"{len(curve):,} values, {curve.not_finite:,} of them not finite"
    figure.text(_LEFT, 1 - 0.58 / height, counted, fontsize=11, color=FAINT_TEXT)
    handles = [
        Line2D([], [], color=CURVE, lw=2.0, label="what is judged"),
        Line2D([], [], color=_LIMIT, lw=2.0, label="limit"),
        Line2D([], [], color=_ALARM, marker="o", ms=6, lw=0, label="alarm"),
        Line2D([], [], color=_ALARM, marker="^", ms=7, lw=0, label="alarm above the panel"),
        Line2D([], [], color=NOT_FINITE, marker="X", ms=7, lw=0, label="NaN or infinite"),
    ]
    figure.legend(handles=handles, loc="upper right", bbox_to_anchor=(_RIGHT, 1 - 0.45 / height), ncols=len(handles),
                  frameon=False, fontsize=10, handlelength=1.5, handletextpad=0.5, columnspacing=1.6,
                  borderaxespad=0.0, borderpad=0.0)  # fmt: skip


def _short(text: str, longest: int = _LONGEST_TITLE) -> str:
    return label(text if len(text) <= longest else f"{text[: longest - 1]}…")
