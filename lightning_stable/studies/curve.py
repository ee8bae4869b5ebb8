# SPDX-License-Identifier: Apache-2.0
"""One logged number, value by value: what a detector is replayed on."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from difflib import get_close_matches
from typing import Any

import numpy as np
from numpy.typing import NDArray

_MOST_NAMES = 20


class NoCurve(ValueError):
    """A file, or a column of it, that cannot be read.

    Example:
        >>> str(NoCurve("run.csv: no such file."))
        'run.csv: no such file.'
    """


@dataclass(frozen=True, eq=False)
class Curve:
    """Values in the order in which they were logged.

    Args:
        column: What was logged.
        steps: The x axis, one per value; it goes back where a run was resumed from an earlier step.
        values: The numbers, non-finite ones among them.
        notes: What was left out, in words.

    Example:
        >>> curve = Curve("loss", np.array([0.0, 1.0, 1.0]), np.array([3.0, np.nan, 2.0]))
        >>> len(curve), curve.not_finite, curve.rewinds.tolist()
        (3, 1, [])
    """

    column: str
    steps: NDArray[np.float64]
    values: NDArray[np.float64]
    notes: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.values)

    @property
    def not_finite(self) -> int:
        """How many values are NaN or infinite."""
        return int((~np.isfinite(self.values)).sum())

    @property
    def rewinds(self) -> NDArray[np.intp]:
        """The indices of values whose step is before that of the value before them."""
        return np.flatnonzero(np.diff(self.steps) < 0) + 1


def curve_of_cells(column: str, cells: Iterable[tuple[int, Any, Any]], has_steps: bool) -> Curve:
    """The curve in the cells of a table, where not every row has a value.

    An empty cell is no value. A cell that is no number is left out and noted; NaN and infinity are numbers.

    Args:
        column: What was logged.
        cells: The line of the file, the step and the value, as texts, numbers or `None`.
        has_steps: Whether there are steps; otherwise values are counted from 0.

    Raises:
        NoCurve: If there is no number at all.

    Example:
        >>> curve = curve_of_cells("loss", [(2, "0", "2.5"), (3, "1", ""), (4, "2", "nan")], has_steps=True)
        >>> curve.steps.tolist(), curve.values.tolist()
        ([0.0, 2.0], [2.5, nan])
    """
    steps: list[float] = []
    values: list[float] = []
    words: list[tuple[int, Any]] = []
    lines_without_step: list[int] = []
    for line, step, cell in cells:
        value = as_number(cell)
        if value is None:
            if not _is_empty(cell):
                words.append((line, cell))
            continue
        if has_steps:
            where = as_number(step)
            if where is None or not abs(where) < float("inf"):
                lines_without_step.append(line)
                continue
            steps.append(where)
        values.append(value)
    notes = []
    if words:
        line, cell = words[0]
        notes.append(f"{_count(len(words), 'cell')} without a number left out, the first in line {line}: {cell!r}.")
    if lines_without_step:
        many = _count(len(lines_without_step), "value")
        notes.append(f"{many} without a step left out, the first in line {lines_without_step[0]}.")
    if not values:
        raise NoCurve(f"there are no numbers in {column!r}. {' '.join(notes)}".strip())
    return Curve(column, np.array(steps) if has_steps else counted(len(values)), np.array(values), notes)


def counted(length: int) -> NDArray[np.float64]:
    """The steps of values that are only counted.

    Args:
        length: How many there are.

    Example:
        >>> counted(3).tolist()
        [0.0, 1.0, 2.0]
    """
    return np.arange(length, dtype=np.float64)


def as_number(cell: Any) -> float | None:
    """The cell as a number, or `None` if it is none.

    Args:
        cell: A text, a number, or anything else.

    Example:
        >>> as_number(" 2.5 "), as_number("nan"), as_number(""), as_number("loss"), as_number([1.0])
        (2.5, nan, None, None, None)
    """
    try:
        return float(cell)
    except (ValueError, TypeError, OverflowError):
        return None


def require_column(column: str | None, there: Iterable[str], kind: str = "column") -> None:
    """Refuse a column that is not there, and say which are.

    Args:
        column: The one asked for.
        there: Those there are.
        kind: What they are called.

    Raises:
        NoCurve: If it is not among them.

    Example:
        >>> require_column("los", ["step", "loss"])
        Traceback (most recent call last):
            ...
        lightning_stable.studies.curve.NoCurve: there is no column 'los'; did you mean 'loss'? There are step, loss.
    """
    names = list(dict.fromkeys(there))
    if column in names:
        return
    shown = ", ".join(names[:_MOST_NAMES]) + (f" and {len(names) - _MOST_NAMES} more" * (len(names) > _MOST_NAMES))
    listed = f"There are {shown}." if names else "There are none."
    if column is None:
        raise NoCurve(f"choose one with `--column`. {listed}")
    close = get_close_matches(column, names, n=1)
    raise NoCurve(f"there is no {kind} {column!r}{f'; did you mean {close[0]!r}?' if close else '.'} {listed}")


def _is_empty(cell: Any) -> bool:
    return cell is None or (isinstance(cell, str) and not cell.strip())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
