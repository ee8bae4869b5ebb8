# SPDX-License-Identifier: Apache-2.0
"""The table and the figure of the study: errors by budget, mean ranks, and whether REX is where its paper has it."""

from collections.abc import Mapping, Sequence
from math import sqrt
from statistics import fmean
from typing import TYPE_CHECKING

from lightning_stable.studies.engine.outcome import Outcome
from lightning_stable.studies.engine.report import markdown_table, mean_and_spread
from lightning_stable.studies.engine.study import Point
from lightning_stable.studies.pictures import FAINT_TEXT, TEXT, style_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

ERROR = "test_error"
LOW = 0.10
"""The largest budget that is a low one, as a share of a full run."""
_REX = "REX"
_RANGES = {2: 5.60, 3: 4.90, 4: 4.68, 5: 4.58, 6: 4.52, 7: 4.48, 8: 4.45, 9: 4.43, 10: 4.41}
"""By the number of seeds n, for 8 schedules at 5 %: scipy.stats.studentized_range.ppf(0.95, 8, 8 * (n - 1))."""
_SCHEDULES = 8
_EQUAL = 1e-9
_NAMES = {"sgd": "SGD with momentum", "adam": "Adam"}
_COLOURS = ("#d62839", "#1d4e89", "#2a9d8f", "#e9a03b", "#7b5ea7", "#8d6e63", "#5c8001", "#8a94a6")
_MARKERS = "osD^vPX*"


def budget_table(outcome: Outcome) -> str:
    """A table of errors for each optimizer, one of mean ranks, and a few sentences.

    Args:
        outcome: Of all runs.
    """
    parts = [_error_table(outcome, optimizer) for optimizer in _optimizers(outcome)]
    return "\n\n".join([_setup(outcome), *parts, _rank_table(outcome), _noise(outcome), _claim(outcome)])


def mean_ranks(outcome: Outcome, settings: Sequence[Point]) -> dict[str, float]:
    """The mean rank of each schedule by its test error, over some settings; the best one first.

    Args:
        outcome: Of all runs.
        settings: Some of its settings.
    """
    ranks = [outcome.ranks(setting, ERROR) for setting in settings]
    means = {side: fmean(rank[side] for rank in ranks) for side in outcome.sides} if ranks else {}
    return dict(sorted(means.items(), key=lambda item: item[1]))


def _setup(outcome: Outcome) -> str:
    """What was trained, in words that the results know."""
    rates = []
    for optimizer in _optimizers(outcome):
        of_it = [result.trial for result in outcome.results if result.trial.setting["optimizer"] == optimizer]
        values = sorted({float(trial.tuning["lr"] or 0.0) for trial in of_it})
        rates.append(f"{_NAMES[optimizer]} {', '.join(f'{rate:g}' for rate in values)}")
    steps = max(result.numbers.get("steps", 0.0) for result in outcome.results)
    return (
        f"A convolutional net on handwritten digits; a full run has {steps:.0f} steps. Learning rates:"
        f" {'; '.join(rates)}. The schedules are those of `ProfileLR` with their defaults, and `ReduceLROnPlateau`,"
        " which alone looks at the validation loss while it trains, 20 times in every run. Validation chooses the"
        " learning rate; the errors shown are those of the test part, which is other digits."
    )


def _error_table(outcome: Outcome, optimizer: str) -> str:
    settings = [setting for setting in outcome.settings if setting["optimizer"] == optimizer]
    rows = [[side, *(_error(outcome, side, setting) for setting in settings)] for side in outcome.sides]
    titles = [f"{_NAMES[optimizer]}: test error (%)", *(_percent(_budget(setting)) for setting in settings)]
    return markdown_table(titles, rows)


def _error(outcome: Outcome, side: str, setting: Point) -> str:
    cell = outcome.cell(side, setting)
    if cell is None:
        return ""
    text = mean_and_spread(cell.mean(ERROR), cell.spread(ERROR))
    ranks = outcome.ranks(setting, ERROR)
    return f"**{text}**" if ranks[side] == min(ranks.values()) else text


def _rank_table(outcome: Outcome) -> str:
    groups = {name: mean_ranks(outcome, settings) for name, settings in _groups(outcome).items()}
    rows = [[side, *(f"{ranks[side]:.2f}" for ranks in groups.values())] for side in groups["all"]]
    return markdown_table([f"Mean rank (1 to {len(outcome.sides)})", *groups], rows)


def _groups(outcome: Outcome) -> dict[str, list[Point]]:
    """The settings over which ranks are averaged; none of the groups is empty."""
    settings = outcome.settings
    groups = {
        "all": settings,
        f"budgets up to {_percent(LOW)}": [setting for setting in settings if _budget(setting) <= LOW],
        f"budgets above {_percent(LOW)}": [setting for setting in settings if _budget(setting) > LOW],
        **{
            _NAMES[optimizer]: [setting for setting in settings if setting["optimizer"] == optimizer]
            for optimizer in _optimizers(outcome)
        },
    }
    return {name: group for name, group in groups.items() if group}


def _noise(outcome: Outcome) -> str:
    """In how many settings the schedules differ by more than seeds do; of one seed nothing is known of that."""
    seeds = len({result.trial.seed for result in outcome.results})
    parts = ["Bold: the first in its column."]
    if seeds in _RANGES and len(outcome.sides) == _SCHEDULES:
        parts.append(_apart(outcome, seeds))
    if seeds > 1:
        clear = sum(second - first > spread for spread, (first, second, *_) in _means(outcome))
        parts.append(
            f"The first and the second differ by more than the spread over seeds in {clear} of"
            f" {len(outcome.settings)}. Ranks next to each other are mostly those of chance."
        )
    return " ".join(parts)


def _apart(outcome: Outcome, seeds: int) -> str:
    limit = _RANGES[seeds] / sqrt(seeds)
    apart = sum(means[-1] - means[0] > limit * spread for spread, means in _means(outcome))
    return (
        "The best and the worst schedule differ by more than eight that are alike do in about one of twenty cases"
        f" (studentized range; about, as all schedules share their seeds) in {apart} of {len(outcome.settings)}"
        " settings."
    )


def _means(outcome: Outcome) -> list[tuple[float, list[float]]]:
    """For each setting the spread over seeds that its schedules have together, and their means, the best one first."""
    found = []
    for setting in outcome.settings:
        cells = [cell for side in outcome.sides if (cell := outcome.cell(side, setting)) is not None]
        spread = sqrt(fmean(cell.spread(ERROR) ** 2 for cell in cells))  # NaN if one diverged: then nothing is clear
        found.append((spread, sorted(cell.mean(ERROR) for cell in cells)))
    return found


def _claim(outcome: Outcome) -> str:
    groups = _groups(outcome)
    low, high = (mean_ranks(outcome, groups[name]) for name in groups if name.startswith("budgets"))
    places = {"low": _place(low), "high": _place(high)}
    holds = all(place <= 2 for place in places.values())
    said = " and ".join(
        f"{_ordinal(places[name])} of {len(ranks)}{_shared(ranks)} at {name} budgets"
        f" (mean rank {ranks[_REX]:.2f}; {_first(ranks)})"
        for name, ranks in (("low", low), ("high", high))
    )
    verdict = "holds here" if holds else "does not hold here"
    return f"REX is {said}. Its paper's claim, to be first or second at low and at high budgets, {verdict}."


def _first(ranks: Mapping[str, float]) -> str:
    others = [side for side in ranks if side != _REX]
    return f"the best other is {others[0]} with {ranks[others[0]]:.2f}"


def _place(ranks: Mapping[str, float]) -> int:
    return 1 + sum(rank < ranks[_REX] - _EQUAL for rank in ranks.values())


def _shared(ranks: Mapping[str, float]) -> str:
    others = [side for side, rank in ranks.items() if side != _REX and abs(rank - ranks[_REX]) < _EQUAL]
    return f", together with {' and '.join(others)}," if others else ""


def budget_figure(outcome: Outcome, figure: "Figure") -> None:
    """A panel of errors for each optimizer, and one of mean ranks.

    Args:
        outcome: Of all runs.
        figure: An empty one.
    """
    optimizers = _optimizers(outcome)
    figure.set_size_inches(4.6 * (len(optimizers) + 1), 5.2)
    *panels, last = figure.subplots(1, len(optimizers) + 1)
    for axes, optimizer in zip(panels, optimizers, strict=True):
        _draw_errors(axes, outcome, optimizer)
    _draw_ranks(last, outcome)
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=len(labels), frameon=False, fontsize=9)


def _draw_errors(axes: "Axes", outcome: Outcome, optimizer: str) -> None:
    settings = [setting for setting in outcome.settings if setting["optimizer"] == optimizer]
    budgets = [100.0 * _budget(setting) for setting in settings]
    for index, side in enumerate(outcome.sides):
        cells = [outcome.cell(side, setting) for setting in settings]
        means = [float("nan") if cell is None else cell.mean(ERROR) for cell in cells]
        axes.plot(
            budgets,
            means,
            label=side,
            color=_COLOURS[index % len(_COLOURS)],
            marker=_MARKERS[index % len(_MARKERS)],
            markersize=5,
            lw=2.4 if side == _REX else 1.2,
            zorder=3 if side == _REX else 2,
        )
    axes.set_xscale("log")
    axes.set_yscale("log")
    axes.set_xticks(budgets, [f"{budget:g}" for budget in budgets])
    axes.minorticks_off()
    ticks = [tick for tick in (1, 2, 3, 5, 10, 20, 30, 50, 90) if axes.get_ylim()[0] <= tick <= axes.get_ylim()[1]]
    axes.set_yticks(ticks, [str(tick) for tick in ticks])
    axes.set_title(_NAMES[optimizer], color=TEXT, fontsize=11)
    axes.set_xlabel("budget (% of a full run)", color=FAINT_TEXT)
    axes.set_ylabel("test error (%), mean over seeds", color=FAINT_TEXT)
    style_axes(axes)


def _draw_ranks(axes: "Axes", outcome: Outcome) -> None:
    groups = _groups(outcome)
    order = list(mean_ranks(outcome, outcome.settings))[::-1]
    for name, shift, colour in zip(
        [name for name in groups if name.startswith("budgets")], (0.2, -0.2), ("#8ecae6", "#1d4e89"), strict=True
    ):
        ranks = mean_ranks(outcome, groups[name])
        places = [place + shift for place in range(len(order))]
        axes.barh(places, [ranks[side] for side in order], height=0.38, color=colour, label=name)
    axes.set_yticks(range(len(order)), order)
    axes.set_xlabel("mean rank by test error (1 is best)", color=FAINT_TEXT)
    axes.set_title("Mean ranks", color=TEXT, fontsize=11)
    axes.set_xlim(0, len(order))
    style_axes(axes)
    axes.grid(axis="y", visible=False)
    axes.grid(axis="x", color="#e9ecef", lw=0.8)
    axes.legend(frameon=False, fontsize=8, loc="upper right")


def _optimizers(outcome: Outcome) -> list[str]:
    return list(dict.fromkeys(str(setting["optimizer"]) for setting in outcome.settings))


def _budget(setting: Point) -> float:
    return float(setting["budget"] or 0.0)


def _percent(share: float) -> str:
    return f"{100 * share:g} %"


def _ordinal(place: int) -> str:
    return {1: "first", 2: "second", 3: "third"}.get(place, f"{place}th")
