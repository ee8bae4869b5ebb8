# SPDX-License-Identifier: Apache-2.0
"""The study's picture: a panel for each stream, a row for each side, a dot for each seed."""

from typing import TYPE_CHECKING, Any

from lightning_stable.studies.engine.outcome import Outcome
from lightning_stable.studies.pictures import CURVE, FAINT_TEXT, NOT_FINITE, TEXT, label, style_axes
from lightning_stable.studies.survival.gaps import Gap, gaps, streams_of
from lightning_stable.studies.survival.sides import FULL, SIDES

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_LINEAR_BELOW = 0.05  # nats; logarithmic beyond


def draw_gaps(outcome: Outcome, figure: "Figure") -> None:
    """Draw the gaps of all sides on all corrupted streams.

    Args:
        outcome: Of the study.
        figure: An empty one; its size is set.

    Example:
        >>> from matplotlib.figure import Figure
        >>> draw_gaps(Outcome([], "loss"), Figure())
    """
    streams = [stream for stream in streams_of(outcome) if not stream.is_clean]
    if not streams:
        return
    by_stream = [gaps(outcome, stream) for stream in streams]
    figure.set_size_inches(3.2 + 1.75 * len(streams), 1.6 + 0.3 * len(outcome.sides))
    panels = figure.subplots(1, len(streams), sharex=True, sharey=True, squeeze=False)[0]
    survived = [gap for found in by_stream for one in found.values() for gap in one.survived.values()]
    right = max([2 * _LINEAR_BELOW, *survived]) * 2  # where lost runs are shown
    for axes, stream, found in zip(panels, streams, by_stream, strict=True):
        style_axes(axes)
        axes.set_title(label(stream.title).replace(", ", "\n"), fontsize=9, color=TEXT)
        axes.axvline(0.0, color="#ced4da", lw=1)
        for row, side in enumerate(outcome.sides):
            if side in found:
                _draw_gap(axes, row, found[side], right, is_ours=side == FULL)
    first = panels[0]
    first.set_xscale("symlog", linthresh=_LINEAR_BELOW)
    ticks = [tick for tick in (-0.1, 0.0, 0.1, 1.0) if tick < right and tick >= min([0.0, *survived]) - _LINEAR_BELOW]
    first.set_xticks([*ticks, right], [*(f"{tick:g}" for tick in ticks), "lost"])
    first.minorticks_off()
    first.set_yticks(range(len(outcome.sides)), [SIDES[side].title for side in outcome.sides])
    first.set_ylim(len(outcome.sides) - 0.5, -0.5)
    figure.suptitle("Gap of the final validation loss to the same side's clean run", fontsize=11, color=TEXT)
    figure.supxlabel("nats; a dot a seed, a bar their mean", fontsize=9, color=FAINT_TEXT)


def _draw_gap(axes: Any, row: int, gap: Gap, right: float, is_ours: bool) -> None:
    colour = "#2a9d8f" if is_ours else CURVE
    axes.plot(list(gap.survived.values()), [row] * len(gap.survived), "o", ms=4, alpha=0.6, color=colour, mec="none")
    if gap.survived:
        axes.plot([gap.mean], [row], "|", ms=12, mew=2, color=colour)
    if gap.lost:
        axes.plot([right], [row], "x", ms=6, mew=2, color=NOT_FINITE)
        axes.annotate(f"{gap.lost}", (right, row), (-12, -3), textcoords="offset points", fontsize=8, color=NOT_FINITE)
