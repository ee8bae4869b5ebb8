# SPDX-License-Identifier: Apache-2.0
"""The picture of a run: loss, gradient norm and learning rate over one axis, with the incidents marked."""

import math
import os
from collections import Counter
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Patch
from matplotlib.ticker import LogFormatterSciNotation, MaxNLocator

from lightning_stable.studies.run_log import Points, RunLog

_RUN, _VALIDATION, _OTHER, _NOT_FINITE = "#1f3a5f", "#0b8f8c", "#9aa3ad", "#d62839"
_RESPONSES = {  # colours that the colour-blind tell apart (Okabe and Ito), mild to severe
    "SkipStep": "#e69f00",
    "ResetMomentum": "#56b4e9",
    "ScaleLR": "#009e73",
    "Rollback": "#cc79a7",
    "Halt": "#d55e00",
}
_UNKNOWN_RESPONSE = "#6c757d"


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
    figure = Figure(figsize=(12, 8.4), dpi=100, facecolor="white")
    loss, norm, rate = figure.subplots(3, 1, sharex=True, height_ratios=(2.4, 1.7, 1.0))
    figure.subplots_adjust(left=0.075, right=0.985, top=0.865, bottom=0.065, hspace=0.09)
    _panel(loss, "loss", _loss(log), _loss(other))
    if validation := _validation(log):
        steps, values = zip(*validation, strict=True)
        loss.plot(steps, values, "o-", color=_VALIDATION, lw=1.2, ms=4.5, zorder=4)
    _panel(norm, "gradient norm (log)", _norm(log), _norm(other), log_scale=True)
    _panel(rate, "learning rate", _rate(log), _rate(other))
    rate.ticklabel_format(axis="y", style="sci", scilimits=(0, 0), useMathText=True)
    for axes in (loss, norm, rate):
        _mark_incidents(axes, log)
    _fit_loss(loss, [*_loss(log), *validation, *_loss(other)])
    rate.set_xlabel("step")
    rate.xaxis.set_major_locator(MaxNLocator(integer=True))
    rate.set_xlim(0, max(1, log.last_step, other.last_step if other else 0))
    figure.text(0.075, 0.962, _title(log), fontsize=15, fontweight="bold", color="#14213d")
    figure.text(0.075, 0.936, _subtitle(log, other), fontsize=10.5, color="#555b66")
    _legend(figure, log, other, bool(validation))
    _save(figure, out)


def _panel(axes: Axes, label: str, points: Points, behind: Points, log_scale: bool = False) -> None:
    if log_scale:
        points, behind = _above_zero(points), _above_zero(behind)
        if points or behind:
            axes.set_yscale("log")
            axes.yaxis.set_major_formatter(LogFormatterSciNotation(labelOnlyBase=True))
    for series, colour, width, shade in ((behind, _OTHER, 1.1, 0.16), (points, _RUN, 1.5, 0.13)):
        if not series:
            continue
        steps, values = zip(*series, strict=True)
        shown = [value if math.isfinite(value) else math.nan for value in values]
        single = sum(map(math.isfinite, values)) == 1
        axes.plot(
            steps, shown, marker="o" if single else None, color=colour, lw=width, zorder=3 if series is points else 2
        )
        for begin, end in not_finite_stretches(series):
            axes.axvspan(begin, end, color=_NOT_FINITE if series is points else _OTHER, alpha=shade, lw=0, zorder=1)
    if not points and not behind:
        axes.text(0.5, 0.5, "not logged", transform=axes.transAxes, ha="center", va="center", color=_OTHER)
    axes.set_ylabel(label, color="#333a45")
    axes.yaxis.set_label_coords(-0.048, 0.5)
    axes.grid(axis="y", color="#e9ecef", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(colors="#555b66", labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#ced4da")


def not_finite_stretches(points: Points) -> list[tuple[float, float]]:
    """From where to where a series is NaN or infinite, each at least one step long.

    Args:
        points: Steps and values.

    Example:
        >>> not_finite_stretches([(0, 1.0), (5, float("nan")), (6, float("inf")), (8, 2.0), (9, float("nan"))])
        [(5, 8), (9, 10)]
    """
    stretches: list[tuple[float, float]] = []
    begin: int | None = None
    for step, value in points:
        if not math.isfinite(value):
            begin = step if begin is None else begin
        elif begin is not None:
            stretches.append((begin, step))
            begin = None
    if begin is not None:
        stretches.append((begin, max(begin + 1, points[-1][0])))
    return stretches


def _mark_incidents(axes: Axes, log: RunLog) -> None:
    for incident in log.incidents:
        colour = _RESPONSES.get(incident["response"], _UNKNOWN_RESPONSE)
        axes.axvline(incident["step"], color=colour, lw=1.4, alpha=0.9, zorder=2.5)


def _fit_loss(axes: Axes, points: Points) -> None:
    """Keep one absurd value from flattening the rest; it is cut off at the top."""
    values = sorted(value for _, value in points if math.isfinite(value))
    if len(values) < 2:
        return
    low, high, middle = values[0], values[-1], values[len(values) // 2]
    usual = values[int(0.98 * (len(values) - 1))]
    if high - middle > 4 * (usual - middle) > 0:
        high = middle + 1.6 * (usual - middle)
    margin = 0.05 * (high - low) or 0.5
    axes.set_ylim(low - margin, high + margin)


def _above_zero(points: Points) -> Points:
    return [(step, value) for step, value in points if not value <= 0]


def _loss(log: RunLog | None) -> Points:
    return _series(log, "stability/loss", "train_loss", "train/loss", "train*loss", "loss", "*loss")


def _norm(log: RunLog | None) -> Points:
    return _series(log, "stability/grad_norm", "grad_norm", "*grad_norm")


def _rate(log: RunLog | None) -> Points:
    return _series(log, "stability/lr", "lr", "lr-*", "learning_rate", "*lr")


def _series(log: RunLog | None, *patterns: str) -> Points:
    found = log.first(*patterns) if log else None
    return found[1] if found else []


def _validation(log: RunLog) -> Points:
    points = next((points for tag, points in log.scalars.items() if "val" in tag and "loss" in tag), [])
    return [(step, value) for step, value in points if math.isfinite(value)]


def _title(log: RunLog) -> str:
    return "/".join(log.folder.resolve().parts[-2:])


def _subtitle(log: RunLog, other: RunLog | None) -> str:
    count = len(log.incidents)
    text = f"{log.last_step} steps, {count} incident{'' if count == 1 else 's'}"
    return f"{text}; grey: {_title(other)}" if other else text


def _legend(figure: Figure, log: RunLog, other: RunLog | None, has_validation: bool) -> None:
    entries: list[Line2D | Patch] = [Line2D([], [], color=_RUN, lw=2, label="this run")]
    if has_validation:
        entries.append(Line2D([], [], color=_VALIDATION, marker="o", ms=4.5, lw=1.2, label="validation"))
    if other:
        entries.append(Line2D([], [], color=_OTHER, lw=2, label=_title(other)))
    if any(not_finite_stretches(series) for series in (_loss(log), _norm(log))):
        entries.append(Patch(color=_NOT_FINITE, alpha=0.25, lw=0, label="not finite"))
    if any(not_finite_stretches(series) for series in (_loss(other), _norm(other))):
        entries.append(Patch(color=_OTHER, alpha=0.35, lw=0, label=f"{_title(other)} not finite" if other else ""))
    for response, number in Counter(incident["response"] for incident in log.incidents).items():
        colour = _RESPONSES.get(response, _UNKNOWN_RESPONSE)
        entries.append(Line2D([], [], color=colour, lw=2.5, label=f"{response} ({number})"))
    figure.legend(
        handles=entries,
        loc="upper left",
        bbox_to_anchor=(0.068, 0.925),
        ncols=len(entries),
        frameon=False,
        fontsize=9.5,
        handlelength=1.4,
        columnspacing=1.5,
    )


def _save(figure: Figure, out: Path) -> None:
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        figure.savefig(unfinished, format="png")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)
