# SPDX-License-Identifier: Apache-2.0
"""What a range test says, and where: a table on the screen, a CSV file, and how far it is."""

import csv
import io
import math
import sys
import time
from collections.abc import Callable, Iterator

from lightning.pytorch.utilities import rank_zero_info

from lightning_stable.callbacks.range_test.curve import RangeCurve
from lightning_stable.callbacks.range_test.sides import RangeTestResult

TITLE = "LRRangeTest"
_HEADER = ("test", "value", "lr", "loss", "smoothed_loss")
_FIRST, _NEXT = 5.0, 10.0  # seconds until something is said, and between two times


class ProgressNotes:
    """Says now and then how far a long test is, and nothing of a short one.

    Args:
        total: Of the steps, at most.
        clock: Seconds, from any beginning.

    Example:
        >>> seconds = iter([0.0, 1.0, 2.0])
        >>> notes = ProgressNotes(100, lambda: next(seconds))
        >>> notes(1), notes(2)  # nothing yet
        (None, None)
    """

    def __init__(self, total: int, clock: Callable[[], float] = time.monotonic) -> None:
        self._total = total
        self._clock = clock
        self._due = clock() + _FIRST

    def __call__(self, taken: int) -> None:
        """So many steps were taken."""
        now = self._clock()
        if now >= self._due:
            self._due = now + _NEXT
            rank_zero_info(f"{TITLE}: {taken} steps tried, of {self._total} at most")


def csv_of(result: RangeTestResult) -> bytes:
    """Every curve, one line a rate.

    Example:
        >>> print(csv_of(RangeTestResult([0.1], [2.0], [2.0], 0.1, 0.01, None, diverged=False)).decode())
        test,value,lr,loss,smoothed_loss
        lr,,0.1,2.0,2.0
        <BLANKLINE>
    """
    text = io.StringIO(newline="")
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(_HEADER)
    for test, value, curve in curves_of(result):
        for row in zip(curve.rates, curve.losses, curve.smoothed, strict=True):
            writer.writerow([test, "" if value is None else value, *row])
    return text.getvalue().encode()


def curves_of(result: RangeTestResult) -> Iterator[tuple[str, float | None, RangeCurve]]:
    """Each curve with the test it belongs to and the value it was made with; that of the run itself has none.

    Example:
        >>> [test for test, _, _ in curves_of(RangeTestResult([0.1], [2.0], [2.0], 0.1, 0.01, None, diverged=False))]
        ['lr']
    """
    of_lr = RangeCurve(result.rates, result.losses, result.smoothed, result.max_lr, result.diverged, result.steepest_lr)
    yield "lr", None, of_lr
    for value, curve in result.of_momentum.items():
        yield "momentum", value, curve
    for value, curve in result.of_weight_decay.items():
        yield "weight_decay", value, curve


def rows_of(result: RangeTestResult) -> list[tuple[str, str]]:
    """The lines of the table.

    Example:
        >>> for row in rows_of(RangeTestResult([0.1, 1.0], [2.0, 9.0], [2.0, 6.0], 0.1, 0.01, None, diverged=True)):
        ...     print(*row, sep=": ")
        max_lr: 0.1, the largest rate that held
        min_lr: 0.01, a tenth of it
        lowest smoothed loss: 2
        steps tried: 0, and undone
    """
    held = "the largest rate that held" if result.diverged else "the end of the grid; try larger ones"
    rows = [("max_lr", f"{result.max_lr:.3g}, {held}"), ("min_lr", f"{result.min_lr:.3g}, a tenth of it")]
    if result.steepest_lr is not None:
        rows.append(("steepest_lr", f"{result.steepest_lr:.3g}, where the loss falls fastest"))
    for test, value, curve in curves_of(result):
        if value is None:
            rows.append(("lowest smoothed loss", f"{curve.lowest:.4g}"))
            continue
        best = value == (result.momentum if test == "momentum" else result.weight_decay)
        largest = "none held" if curve.largest is None else f"max_lr {curve.largest:.3g}"
        lowest = "no loss" if math.isnan(curve.lowest) else f"lowest loss {curve.lowest:.4g}"
        rows.append((f"{test} {value:g}", f"{largest}, {lowest}" + ("  <- recommended" if best else "")))
    return [*rows, ("steps tried", f"{result.steps}, and undone")]


def print_table(rows: list[tuple[str, str]]) -> None:
    """Print the table, with rich where it is installed.

    Example:
        >>> print_table([("max_lr", "0.1")])  # doctest: +ELLIPSIS
        LRRangeTest...
    """
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        width = max(len(name) for name, _ in rows)
        lines = [f"  {name:<{width}}  {text}" for name, text in rows]
        sys.stdout.write("\n".join([TITLE, *lines, ""]))
        return
    table = Table(title=TITLE, title_justify="left", show_header=False)
    for _ in range(2):
        table.add_column(overflow="fold")  # the name of a folder is of use only if it is whole
    for row in rows:
        table.add_row(*map(Text, row), style=None)
    Console().print(table)
