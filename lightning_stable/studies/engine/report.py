# SPDX-License-Identifier: Apache-2.0
"""What a study leaves behind: `table.md`, `results.csv` and `figure.png`, each of them whole or not there."""

import csv
import io
import math
from collections.abc import Iterable, Sequence
from pathlib import Path

from lightning_stable.files import write_atomically
from lightning_stable.studies.engine.equal_tuning import tuning_budget
from lightning_stable.studies.engine.outcome import Cell, Outcome, Result
from lightning_stable.studies.engine.study import Point, Study
from lightning_stable.studies.pictures import save_picture
from lightning_stable.studies.table import printable

TABLE, RESULTS, FIGURE = "table.md", "results.csv", "figure.png"
_FAILURES_SHOWN = 10


def write_table(study: Study, outcome: Outcome, command: str, folder: Path) -> str:
    """Write `table.md` and return what is in it.

    Args:
        study: Whose.
        outcome: What came out.
        command: What made it.
        folder: Where to.
    """
    trials = [result.trial for result in outcome.results]
    parts = [
        f"# Study `{study.name}`",
        study.question,
        f"Equal tuning budget: {tuning_budget(trials)}. In each setting each side is shown at the tuning point with the"
        f" smallest mean `{study.objective}` over these seeds; mean ± standard deviation over the same seeds."
        f" Made by `{command}`.",
        study.table(outcome),
        _edges(outcome),
        _failures(outcome.failed),
    ]
    text = "\n\n".join(part.strip() for part in parts if part.strip()) + "\n"
    write_atomically(folder / TABLE, text.encode())
    return text


def write_results(outcome: Outcome, folder: Path) -> None:
    """Write `results.csv`: a row for each run.

    Args:
        outcome: What came out.
        folder: Where to.
    """
    results = outcome.results
    settings = _names(result.trial.setting for result in results)
    tunings = _names(result.trial.tuning for result in results)
    numbers = _names(result.numbers for result in results)
    chosen = {id(result) for cell in _cells(outcome) for result in cell.results}
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["side", *settings, *tunings, "seed", "chosen", *numbers, "seconds", "failed_with"])
    for result in results:
        trial = result.trial
        writer.writerow(
            [
                trial.side,
                *(trial.setting.get(name, "") for name in settings),
                *(trial.tuning.get(name, "") for name in tunings),
                trial.seed,
                int(id(result) in chosen),
                *(result.numbers.get(name, "") for name in numbers),
                f"{result.seconds:.3f}",
                result.error or "",
            ]
        )
    write_atomically(folder / RESULTS, text.getvalue().encode())


def draw_figure(study: Study, outcome: Outcome, folder: Path) -> None:
    """Write `figure.png`.

    Args:
        study: Whose.
        outcome: What came out.
        folder: Where to.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=120, layout="constrained")
    study.draw(outcome, figure)
    save_picture(figure, folder / FIGURE)


def markdown_table(titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table, whose first column is to the left and all others to the right.

    Args:
        titles: One per column.
        rows: As many cells as there are titles.

    Example:
        >>> print(markdown_table(["budget", "rex"], [["1 %", "0.5 ± 0.1"]]))
        | budget | rex |
        | --- | ---: |
        | 1 % | 0.5 ± 0.1 |
    """
    signs = ["---", *["---:"] * (len(titles) - 1)]
    lines = [[printable(cell).replace("|", "\\|") for cell in line] for line in (titles, *rows)]
    return "\n".join(f"| {' | '.join(line)} |" for line in (lines[0], signs, *lines[1:]))


def mean_and_spread(mean: float, spread: float, digits: int = 2) -> str:
    """A mean and its spread as they stand in a table; of one seed the mean alone.

    Args:
        mean: The mean.
        spread: The standard deviation, or NaN.
        digits: After the point.

    Example:
        >>> mean_and_spread(0.512, 0.021), mean_and_spread(0.512, float("nan")), mean_and_spread(float("nan"), 0.1)
        ('0.51 ± 0.02', '0.51', 'diverged')
    """
    if not math.isfinite(mean):
        return "diverged"
    return f"{mean:.{digits}f}" + (f" ± {spread:.{digits}f}" if math.isfinite(spread) else "")


def _cells(outcome: Outcome) -> list[Cell]:
    cells = (outcome.cell(side, setting) for setting in outcome.settings for side in outcome.sides)
    return [cell for cell in cells if cell is not None]


def _edges(outcome: Outcome) -> str:
    cells = _cells(outcome)
    found = [cell for cell in cells if cell.at_edge]
    if not found:
        return ""
    sides = [
        f"{side} {sum(cell.side == side for cell in found)} of {sum(cell.side == side for cell in cells)}"
        for side in outcome.sides
        if any(cell.side == side for cell in found)
    ]
    return f"Chosen at the edge of what was tried, so that the best may lie outside: {'; '.join(sides)} settings."


def _failures(failed: Sequence[Result]) -> str:
    if not failed:
        return ""
    lines = [f"- {_words(result)}: {printable(result.error or '')}" for result in failed[:_FAILURES_SHOWN]]
    more = len(failed) - len(lines)
    lines += [f"- and {more} more: see `{RESULTS}`"] * (more > 0)
    count = "1 run" if len(failed) == 1 else f"{len(failed)} runs"
    return "\n".join(
        [f"**Failed: {count}**, which count as the worst there is (`--retry-failed` makes them again):", "", *lines]
    )


def _words(result: Result) -> str:
    trial = result.trial
    point = {**trial.setting, **trial.tuning, "seed": trial.seed}
    return " ".join([trial.side, *(f"{name}={value}" for name, value in point.items())])


def _names(points: Iterable[Point]) -> list[str]:
    return list(dict.fromkeys(name for point in points for name in point))
