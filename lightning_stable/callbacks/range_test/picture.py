# SPDX-License-Identifier: Apache-2.0
"""The picture of a range test: the loss over the rates, the edge, and what is recommended.

It needs matplotlib, and is imported only where there is a picture to be drawn.
"""

import io
import math
from collections.abc import Sequence

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from lightning_stable.callbacks.range_test.curve import RangeCurve
from lightning_stable.callbacks.range_test.sides import RangeTestResult

_TEXT, _FAINT_TEXT, _CURVE, _BEHIND, _EDGE, _STEEPEST = "#14213d", "#555b66", "#1d4e89", "#a9bcd3", "#d62839", "#e69f00"
_COLOURS = ("#1d4e89", "#e69f00", "#009e73", "#cc79a7", "#56b4e9", "#d55e00", "#6c757d", "#14213d")
_ABOVE = 1.3  # times the span from the lowest loss to the first one is shown; what diverges goes on above


def draw(result: RangeTestResult, logarithmic: bool) -> Figure:
    """One panel for the learning rate, and one each for momentum and weight decay where they were tested.

    Args:
        result: What was found.
        logarithmic: Whether the rates are spaced so.

    Example:
        >>> figure = draw(RangeTestResult([0.1, 1.0], [2.0, 1.0], [2.0, 1.4], 1.0, 0.1, None, diverged=False), True)
        >>> len(figure.axes)
        1
    """
    others = [("momentum", result.of_momentum, result.momentum)] if result.of_momentum else []
    others += [("weight decay", result.of_weight_decay, result.weight_decay)] if result.of_weight_decay else []
    count = 1 + len(others)
    figure = Figure(figsize=(9.0, 1.1 + 3.7 * count), dpi=100, facecolor="white", layout="constrained")
    panels: list[Axes] = list(figure.subplots(count, 1, squeeze=False)[:, 0])
    _draw_rates(panels[0], result)
    for axes, (name, curves, best) in zip(panels[1:], others, strict=True):
        _draw_values(axes, name, curves, best)
    for axes in panels:
        _style(axes, logarithmic)
    panels[-1].set_xlabel("learning rate", color=_FAINT_TEXT)
    figure.suptitle("Learning rate range test", fontsize=15, fontweight="bold", color=_TEXT, ha="left", x=0.012)
    return figure


def png_of(figure: Figure) -> bytes:
    """The picture as it is in a file.

    Example:
        >>> png_of(Figure())[1:4]
        b'PNG'
    """
    content = io.BytesIO()
    FigureCanvasAgg(figure).print_png(content)
    return content.getvalue()


def _draw_rates(axes: Axes, result: RangeTestResult) -> None:
    axes.axvspan(result.min_lr, result.max_lr, color=_CURVE, alpha=0.08, lw=0, label="min_lr to max_lr")
    finite = [(rate, loss) for rate, loss in zip(result.rates, result.losses, strict=True) if math.isfinite(loss)]
    axes.plot(*_columns(finite), color=_BEHIND, lw=1.0, label="loss after the step")
    axes.plot(*_columns(_finite(result.rates, result.smoothed)), color=_CURVE, lw=2.0, label="smoothed")
    verdict = "the largest that held" if result.diverged else "the end of the grid"
    axes.axvline(result.max_lr, color=_EDGE, lw=1.6, label=f"max_lr {result.max_lr:.3g}, {verdict}")
    if result.steepest_lr is not None:
        axes.axvline(
            result.steepest_lr, color=_STEEPEST, lw=1.4, ls="--", label=f"steepest descent {result.steepest_lr:.3g}"
        )
    title = f"recommended: max_lr {result.max_lr:.3g}, min_lr {result.min_lr:.3g}"
    axes.set_title(title, loc="left", fontsize=11, color=_TEXT)
    axes.set_ylim(*_span([result.smoothed], result.losses))
    axes.legend(loc="lower left", fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")


def _draw_values(axes: Axes, name: str, curves: dict[float, RangeCurve], best: float | None) -> None:
    for index, (value, curve) in enumerate(curves.items()):
        colour = _COLOURS[index % len(_COLOURS)]
        largest = "none held" if curve.largest is None else f"max_lr {curve.largest:.3g}"
        text = f"{value:g}: {largest}" + (", recommended" if value == best else "")
        axes.plot(
            *_columns(_finite(curve.rates, curve.smoothed)), color=colour, lw=2.4 if value == best else 1.4, label=text
        )
        if curve.largest is not None:
            axes.axvline(curve.largest, color=colour, lw=1.0, ls=":")
    axes.set_title(f"{name}, smoothed losses", loc="left", fontsize=11, color=_TEXT)
    axes.set_ylim(*_span([curve.smoothed for curve in curves.values()], []))
    axes.legend(loc="lower left", fontsize=9, frameon=True, framealpha=0.9, edgecolor="none")


def _style(axes: Axes, logarithmic: bool) -> None:
    if logarithmic:
        axes.set_xscale("log")
    axes.set_ylabel("loss", color=_FAINT_TEXT)
    axes.grid(axis="y", color="#e9ecef", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_FAINT_TEXT, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#ced4da")


def _finite(rates: Sequence[float], losses: Sequence[float]) -> list[tuple[float, float]]:
    return [(rate, loss) for rate, loss in zip(rates, losses, strict=True) if math.isfinite(loss)]


def _columns(points: list[tuple[float, float]]) -> tuple[list[float], list[float]]:
    return [x for x, _ in points], [y for _, y in points]


def _span(curves: Sequence[Sequence[float]], more: Sequence[float]) -> tuple[float, float]:
    """From the lowest loss to a little above the first ones: a loss that has exploded would flatten all others."""
    finite = [loss for curve in curves for loss in curve if math.isfinite(loss)]
    firsts = [curve[0] for curve in curves if curve and math.isfinite(curve[0])]
    if not finite or not firsts:
        return 0.0, 1.0
    low, high = min([*finite, *(loss for loss in more if math.isfinite(loss))]), max(firsts)
    height = (high - low) or abs(high) or 1.0
    return low - 0.08 * height, low + _ABOVE * height
