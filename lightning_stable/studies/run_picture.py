# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: loss, gradient norm and learning rate over one axis, with the incidents marked.

The curves are the steps that were taken. A step that the guard vetoed is a mark of its own, at its value or, where that
is not finite or far above the rest, at the upper edge.
"""

import math
from collections import Counter
from pathlib import Path

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator, StrMethodFormatter

from lightning_stable.studies.pictures import CURVE, FAINT_TEXT, NOT_FINITE, TEXT, label, save_picture, style_axes
from lightning_stable.studies.run_log import Points, RunLog, lost_from, not_finite_stretches

_VALIDATION, _OTHER = "#0b8f8c", "#a3abb5"
_RESPONSES = {  # colours that the colour-blind tell apart (Okabe and Ito), mild to severe
    "SkipStep": "#e69f00",
    "ResetMomentum": "#56b4e9",
    "ScaleLR": "#009e73",
    "Rollback": "#cc79a7",
    "Halt": "#d55e00",
}
_UNKNOWN_RESPONSE = "#6c757d"
_WARNING = "#0072b2"
_WIDTH, _LEFT, _RIGHT = 12.0, 0.075, 0.985  # inches, and parts of them
_HEADER, _LEGEND_ROW, _PANELS = 0.72, 0.27, 7.2  # inches
_ENTRIES_A_ROW = 6
_LONGEST_LABEL = 40


def draw(log: RunLog, out: Path, other: RunLog | None = None) -> None:
    """Draw `log` into the PNG `out`, which is either whole or not there.

    Args:
        log: The run.
        out: The PNG file, 1200 pixels wide.
        other: A second run, drawn in grey behind the first.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     draw(RunLog(Path("runs/x"), {"train_loss": [(0, 4.0), (1, 3.0)]}), Path(folder, "report.png"))
        ...     [path.name for path in Path(folder).iterdir()]
        ['report.png']
    """
    legends = _legend_rows(log, other)
    header = _HEADER + _LEGEND_ROW * len(legends)
    height = header + _PANELS
    figure = Figure(figsize=(_WIDTH, height), dpi=100, facecolor="white")
    loss, norm, rate = figure.subplots(3, 1, sharex=True, height_ratios=(2.6, 1.6, 0.9))
    figure.subplots_adjust(left=_LEFT, right=_RIGHT, top=1 - (header + 0.1) / height, bottom=0.56 / height, hspace=0.1)
    behind = other or RunLog(log.folder)
    _panel(loss, "loss", _taken(log, log.loss), _taken(behind, behind.loss))
    _panel(norm, "gradient norm", _taken(log, log.gradient_norm), _taken(behind, behind.gradient_norm), log_scale=True)
    _panel(rate, "learning rate", log.learning_rate, behind.learning_rate)
    _draw_validation(loss, log)
    _fit_loss(loss, [*_taken(log, log.loss), *_validation(log)], _taken(behind, behind.loss))
    _fit_norm(norm, _taken(log, log.gradient_norm), [*log.gradient_norm, *_taken(behind, behind.gradient_norm)])
    rate.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    rate.set_xlabel("step", color=FAINT_TEXT)
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate.set_xlim(0, max(1, log.last_step, behind.last_step))
    for axes, points in ((loss, log.loss), (norm, log.gradient_norm), (rate, [])):
        _mark_incidents(axes, log, points)
    _say_where_lost(loss, behind, 0.6, FAINT_TEXT, f"{_label(behind, log)} is ")
    _say_where_lost(loss, log, 0.93, NOT_FINITE, "")
    _head(figure, log, legends, height)
    save_picture(figure, out)


def _panel(axes: Axes, label: str, points: Points, behind: Points, log_scale: bool = False) -> None:
    if log_scale:
        points, behind = _above_zero(points), _above_zero(behind)
        if points or behind:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=True))
    for series, colour, width, order in ((behind, _OTHER, 1.1, 2), (points, CURVE, 1.5, 3)):
        steps, values = [step for step, _ in series], [value for _, value in series]
        shown = [value if math.isfinite(value) else math.nan for value in values]
        single = sum(map(math.isfinite, values)) == 1
        axes.plot(steps, shown, marker="o" if single else None, color=colour, lw=width, zorder=order)
        for begin, end in not_finite_stretches(series):
            shade = NOT_FINITE if series is points else _OTHER
            axes.axvspan(begin, end, color=shade, alpha=0.13, lw=0, zorder=1)
    if not points and not behind:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color=_OTHER)
    axes.set_ylabel(label, color=FAINT_TEXT)
    axes.yaxis.set_label_coords(-0.05, 0.5)
    style_axes(axes)


def _draw_validation(axes: Axes, log: RunLog) -> None:
    steps, values = [step for step, _ in _validation(log)], [value for _, value in _validation(log)]
    size = 5 if len(steps) < 50 else 0
    axes.plot(steps, values, "o-", color=_VALIDATION, lw=1.4, ms=size, mec="white", mew=0.8, zorder=4)


def _mark_incidents(axes: Axes, log: RunLog, points: Points) -> None:
    """A faint line through all panels, and a mark where the vetoed step would have been; of a warning a dotted line."""
    values = dict(points)
    bottom, top = axes.get_ylim()
    for warning in log.warnings:
        axes.axvline(warning["step"], color=_WARNING, lw=1.2, ls=":", zorder=1.5)
    for incident in log.incidents:
        step, colour = incident["step"], _colour(incident["response"])
        axes.axvline(step, color=colour, lw=1.0, alpha=0.45, zorder=1.5)
        value = values.get(step)
        if value is None:
            continue
        outside = not bottom <= value <= top
        where = (step, top if outside else value)
        marker = "^" if outside else "o"
        axes.plot(*where, marker, color=colour, ms=6.5, mec="white", mew=0.8, clip_on=False, zorder=5)
    axes.set_ylim(bottom, top)


def _say_where_lost(axes: Axes, log: RunLog, height: float, colour: str, subject: str) -> None:
    points = _taken(log, log.loss)
    begin = lost_from(points)
    if begin is None:
        return
    word = "NaN" if math.isnan(dict(points)[begin]) else "infinite"
    last = next(((step, value) for step, value in reversed(points) if math.isfinite(value)), None)
    if last is not None:
        axes.plot(*last, "X", color=colour, ms=9, mec="white", mew=0.8, zorder=6)
    late = begin > 0.6 * axes.get_xlim()[1]
    axes.annotate(
        f"{subject}{word} from step {begin}",
        (begin, height),
        xycoords=axes.get_xaxis_transform(),
        xytext=(-8 if late else 8, 0),
        textcoords="offset points",
        ha="right" if late else "left",
        va="center",
        color=colour,
        fontsize=11,
        fontweight="bold",
        bbox={"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 2.0},
        zorder=7,
    )


def _fit_loss(axes: Axes, points: Points, behind: Points) -> None:
    """Keep one absurd value, and a second run that went astray, from flattening the curve: they leave by the top."""
    values, others = _finite(points) or _finite(behind), _finite(behind)
    if not values:
        return
    low, high = values[0], _usual_top(values)
    if others:
        span = high - low
        low = min(low, max(others[0], low - span))
        high = max(high, min(_usual_top(others), high + span))
    margin = 0.06 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)


def _usual_top(values: list[float]) -> float:
    """The largest of the sorted `values`, or a bit above the usual ones if it is far from them."""
    high, middle, usual = values[-1], values[len(values) // 2], values[int(0.98 * (len(values) - 1))]
    return middle + 1.6 * (usual - middle) if high - middle > 4 * (usual - middle) > 0 else high


def _fit_norm(axes: Axes, points: Points, behind: Points) -> None:
    values, others = _finite(_above_zero(points)), _finite(_above_zero(behind))
    values = values or others
    if not values:
        return
    low, high = values[0], values[-1]
    if others:  # spikes and the second run; at most one and a half decades more
        low, high = max(min(low, others[0]), low / 30), min(max(high, others[-1]), high * 30)
    axes.set_ylim(low / 1.4, high * 1.4)


def _taken(log: RunLog, points: Points) -> Points:
    """The points of the steps that the guard let pass."""
    vetoed = {incident["step"] for incident in log.incidents}
    return [point for point in points if point[0] not in vetoed]


def _validation(log: RunLog) -> Points:
    _, points = log.validation_loss or ("", [])
    return [(step, value) for step, value in points if math.isfinite(value)]


def _finite(points: Points) -> list[float]:
    return sorted(value for _, value in points if math.isfinite(value))


def _above_zero(points: Points) -> Points:
    return [(step, value) for step, value in points if not value <= 0]


def _colour(response: str) -> str:
    return _RESPONSES.get(response, _UNKNOWN_RESPONSE)


def _label(log: RunLog, beside: RunLog | None) -> str:
    """The run's name, without its version where the folder above tells it from `beside`."""
    folder, _, version = log.name.rpartition("/")
    alone = folder and version.startswith("version_")
    unlike = beside is None or beside.name.rpartition("/")[0] != folder
    return _short(folder if alone and unlike else log.name)


def _short(text: str) -> str:
    return label(text if len(text) <= _LONGEST_LABEL else f"…{text[1 - _LONGEST_LABEL :]}")


def _subtitle(log: RunLog) -> str:
    counts = f"{log.optimizer_steps} optimizer steps"
    if log.steps_tried > log.optimizer_steps:
        counts += f" of {log.steps_tried} tried"
    incidents = f"{len(log.incidents)} incident{'' if len(log.incidents) == 1 else 's'}"
    return f"{counts}, {incidents}" + (" (marks: steps that the guard undid)" if log.incidents else "")


def _legend_rows(log: RunLog, other: RunLog | None) -> list[list[Artist]]:
    """What the curves are in one row, what was done about spikes in the next."""
    curves: list[Artist] = [Line2D([], [], color=CURVE, lw=2.2, label=_label(log, other))]
    if _validation(log):
        curves.append(Line2D([], [], color=_VALIDATION, marker="o", ms=5, lw=1.4, label="its validation loss"))
    if other:
        curves.append(Line2D([], [], color=_OTHER, lw=2.2, label=_label(other, log)))
    if any(not_finite_stretches(_taken(log, series)) for series in (log.loss, log.gradient_norm)):
        curves.append(Patch(color=NOT_FINITE, alpha=0.25, lw=0, label="NaN or infinite"))
    counts = Counter(incident["response"] for incident in log.incidents)
    marks: list[Artist] = [
        Line2D([], [], color=_colour(name), marker="o", ms=6.5, lw=0, label=f"{_short(name)} ({number})")
        for name, number in sorted(counts.items(), key=_severity)
    ]
    if log.warnings:
        marks.append(Line2D([], [], color=_WARNING, lw=1.2, ls=":", label=f"warning ({len(log.warnings)})"))
    return [curves, *(marks[start : start + _ENTRIES_A_ROW] for start in range(0, len(marks), _ENTRIES_A_ROW))]


def _severity(counted: tuple[str, int]) -> int:
    return [*_RESPONSES, counted[0]].index(counted[0])


def _head(figure: Figure, log: RunLog, legends: list[list[Artist]], height: float) -> None:
    figure.text(_LEFT, 1 - 0.34 / height, _short(log.name), fontsize=16, fontweight="bold", color=TEXT)
    figure.text(_LEFT, 1 - 0.60 / height, _subtitle(log), fontsize=11, color=FAINT_TEXT)
    for row, handles in enumerate(legends):
        figure.legend(
            handles=handles,
            loc="upper left",
            bbox_to_anchor=(_LEFT, 1 - (_HEADER + row * _LEGEND_ROW) / height),
            ncols=len(handles),
            frameon=False,
            fontsize=10,
            handlelength=1.5,
            handletextpad=0.5,
            columnspacing=1.8,
            borderaxespad=0.0,
            borderpad=0.0,
        )
