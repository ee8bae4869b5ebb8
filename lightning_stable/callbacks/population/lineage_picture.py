# SPDX-License-Identifier: Apache-2.0
"""The picture of a population: every turn's score and hyper-parameters over its steps, the surviving line marked."""

import io
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from lightning_stable.callbacks.population.lineage import Lineage, Turn
from lightning_stable.callbacks.population.settings import Settings
from lightning_stable.files import write_atomically

_TEXT, _FAINT_TEXT, _LINE, _OTHERS, _COPY = "#14213d", "#555b66", "#1d4e89", "#a9bcd3", "#e69f00"
_WIDTH, _LEFT, _RIGHT = 10.0, 0.09, 0.97  # inches, and parts of them
_HEADER, _PANEL, _GAP, _FOOTER = 1.0, 2.2, 0.45, 0.6  # inches
_DECADES = 10.0  # largest over smallest, from which on an axis is logarithmic


def draw(lineage: Lineage, best: int, settings: Settings, out: Path) -> None:
    """Draw a lineage into the PNG `out`, which is either whole or not there.

    Args:
        lineage: With one turn at least.
        best: The member whose line is marked.
        settings: Of the search.
        out: The PNG file, 1000 pixels wide.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> settings = Settings(2, 5, {"lr": [0.1, 1.0]}, {}, [], "val_loss", "min", 0.2, 0)
        >>> lineage = Lineage([Turn(0, 0, 0, 5, 5, {"lr": 1.0}, 0.1), Turn(0, 1, 0, 5, 10, {"lr": 0.2}, 0.3)], [])
        >>> with TemporaryDirectory() as folder:
        ...     draw(lineage, 0, settings, Path(folder, "pbt.png"))
        ...     [path.name for path in Path(folder).iterdir()]
        ['pbt.png']
    """
    line = lineage.line_of(best)
    names = settings.space.names
    height = _HEADER + (1 + len(names)) * (_PANEL + _GAP) - _GAP + _FOOTER
    figure = Figure(figsize=(_WIDTH, height), dpi=100, facecolor="white")
    panels = figure.subplots(1 + len(names), 1, sharex=True, squeeze=False)[:, 0]
    figure.subplots_adjust(
        left=_LEFT, right=_RIGHT, top=1 - _HEADER / height, bottom=_FOOTER / height, hspace=_GAP / _PANEL
    )
    _scores(panels[0], lineage, line, settings)
    for axes, name in zip(panels[1:], names, strict=True):
        _values(axes, lineage, line, name)
    panels[-1].set_xlabel("optimizer steps of a member", color=_FAINT_TEXT)
    panels[-1].xaxis.set_major_locator(MaxNLocator(integer=True))
    _head(figure, lineage, line, best, settings, height)
    content = io.BytesIO()
    figure.savefig(content, format="png")
    write_atomically(out, content.getvalue())


def _scores(axes: Axes, lineage: Lineage, line: list[Turn], settings: Settings) -> None:
    _style(axes, f"{settings.monitor}, at the end of each turn")
    for turn, before in _with_parents(lineage):
        if before is not None and before.score is not None and turn.score is not None:
            copied = before.member != turn.member
            axes.plot([before.end, turn.end], [before.score, turn.score], color=_COPY if copied else _OTHERS, lw=0.8)
    axes.plot(*_scored(lineage.turns), ".", color=_OTHERS, ms=5)
    axes.plot(*_scored(line), ".-", color=_LINE, lw=2, ms=7)
    broken = [turn for turn in lineage.turns if turn.score is None]
    axes.plot([turn.end for turn in broken], [0.97] * len(broken), "x", color="#d62839", ms=6,
              transform=axes.get_xaxis_transform())  # fmt: skip
    _scale(axes, _scored(lineage.turns)[1])


def _scored(turns: list[Turn]) -> tuple[list[int], list[float]]:
    """Where turns have ended, and their scores, of those that have one."""
    pairs = [(turn.end, turn.score) for turn in turns if turn.score is not None]
    return [end for end, _ in pairs], [score for _, score in pairs]


def _values(axes: Axes, lineage: Lineage, line: list[Turn], name: str) -> None:
    _style(axes, name)
    for turn, before in _with_parents(lineage):
        value = turn.hyperparameters[name]
        axes.plot([turn.begin, turn.end], [value, value], color=_OTHERS, lw=1.2, solid_capstyle="butt")
        if before is not None and before.member != turn.member:
            axes.plot([turn.begin, turn.begin], [before.hyperparameters[name], value], color=_COPY, lw=0.9)
    steps = [step for turn in line for step in (turn.begin, turn.end)]
    axes.plot(steps, [turn.hyperparameters[name] for turn in line for _ in range(2)], color=_LINE, lw=2.2)
    _scale(axes, [turn.hyperparameters[name] for turn in lineage.turns])


def _with_parents(lineage: Lineage) -> list[tuple[Turn, Turn | None]]:
    """Every turn with the one whose weights it began from."""
    turns = {(turn.generation, turn.member): turn for turn in lineage.turns}
    parents = {(copy.generation, copy.member): copy.parent for copy in lineage.copies}
    pairs = []
    for turn in lineage.turns:
        before = turn.generation - 1
        pairs.append((turn, turns.get((before, parents.get((before, turn.member), turn.member)))))
    return pairs


def _head(figure: Figure, lineage: Lineage, line: list[Turn], best: int, settings: Settings, height: float) -> None:
    scores = [turn.score for turn in line if turn.score is not None]
    ended = f"{settings.monitor} {scores[-1]:.4g}" if scores else "no score"
    generations = len({turn.generation for turn in lineage.turns})
    title = f"{settings.population} members, {generations} generations: the best, member {best}, came to {ended}"
    figure.text(_LEFT, 1 - 0.35 / height, title.replace("$", r"\$"), color=_TEXT, fontsize=13, weight="bold")
    handles = [
        Line2D([], [], color=_LINE, lw=2.2, label="line of the best: schedule.json"),
        Line2D([], [], color=_OTHERS, lw=1.2, label="the others"),
        Line2D([], [], color=_COPY, lw=1.2, label="copied, and perturbed"),
        Line2D([], [], color="#d62839", marker="x", lw=0, label="no finite score"),
    ]
    shown = handles if any(turn.score is None for turn in lineage.turns) else handles[:3]
    figure.legend(handles=shown, loc="upper left", bbox_to_anchor=(_LEFT - 0.01, 1 - 0.42 / height), ncols=4,
                  frameon=False, fontsize=9, labelcolor=_FAINT_TEXT)  # fmt: skip


def _scale(axes: Axes, values: list[float]) -> None:
    if values and min(values) > 0 and max(values) > _DECADES * min(values):
        axes.set_yscale("log")


def _style(axes: Axes, title: str) -> None:
    axes.set_title(title.replace("$", r"\$"), loc="left", fontsize=10, color=_TEXT)
    axes.grid(axis="y", color="#e9ecef", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=_FAINT_TEXT, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#ced4da")
