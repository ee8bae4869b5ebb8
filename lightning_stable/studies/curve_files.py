# SPDX-License-Identifier: Apache-2.0
"""Curves out of CSV, JSON lines, npz and event files. Nothing is unpickled."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

import numpy as np
from numpy.lib.npyio import NpzFile
from numpy.typing import NDArray

from lightning_stable.studies.curve import Curve, NoCurve, counted, curve_of_cells, require_column
from lightning_stable.studies.event_files import DamagedEvents, Logged, read_event_scalars
from lightning_stable.studies.run_log import runs_below

_STEP = "step"


def read_curve(path: Path, column: str | None, step_column: str | None = None) -> Curve:
    """Read one column of whatever was logged.

    Args:
        path: A `.csv` with titles, `.jsonl`, `.npz`, an event file, or the folder of a run with event files or
            `metrics.csv`. Values stay in the order in which they were written; those of several event files, in the
            order in which these were begun.
        column: A title, a key, an array or a tag.
        step_column: The x axis: by default "step" if there is one, "" for counting the values from 0. Event files have
            steps of their own.

    Raises:
        NoCurve: If there is no such file or column, there are no numbers in it, or the file is damaged. The message
            begins with the path; `column=None` has it list the columns.

    Example:
        >>> read_curve(Path("run.csv"), "loss")
        Traceback (most recent call last):
            ...
        lightning_stable.studies.curve.NoCurve: run.csv: no such file or folder.
    """
    if not path.exists():
        raise NoCurve(f"{path}: no such file or folder.")
    try:
        return _read(path, column, step_column)
    except (NoCurve, DamagedEvents) as error:
        text = str(error)
        raise NoCurve(text if text.startswith(str(path)) else f"{path}: {text}") from error
    except UnicodeDecodeError as error:
        raise NoCurve(f"{path}: not a text in UTF-8 ({error.reason} at byte {error.start}).") from error
    except OSError as error:
        raise NoCurve(f"{path}: {error.strerror or error}.") from error


def _read(path: Path, column: str | None, step_column: str | None) -> Curve:
    if path.is_dir():
        files = sorted(path.glob("*tfevents*"))
        if files:
            return _read_events(files, column, step_column)
        if not (path / "metrics.csv").is_file():
            raise NoCurve(f"no TensorBoard event files and no metrics.csv.{runs_below(path)}")
        path = path / "metrics.csv"
    if "tfevents" in path.name:
        return _read_events([path], column, step_column)
    readers = {".csv": _read_csv, ".jsonl": _read_jsonl, ".ndjson": _read_jsonl, ".npz": _read_npz}
    reader = readers.get(path.suffix.lower())
    if reader is None:
        raise NoCurve("its name must end in .csv, .jsonl or .npz, or it must be an event file or the folder of a run.")
    return reader(path, column, step_column)


def _read_csv(path: Path, column: str | None, step_column: str | None) -> Curve:
    with path.open(newline="", encoding="utf-8-sig") as file:
        rows = csv.reader(file)
        try:
            titles = [title.strip() for title in next(rows, [])]
            require_column(column, titles)
            steps = _steps_of(titles, step_column)
            at, steps_at = titles.index(str(column)), titles.index(steps) if steps else None
            cells = (
                (rows.line_num, row[steps_at] if steps_at is not None and len(row) > steps_at else None, row[at])
                for row in rows
                if len(row) > at
            )
            return curve_of_cells(str(column), cells, steps is not None)
        except csv.Error as error:
            raise NoCurve(f"line {rows.line_num}: {error}.") from error


def _read_jsonl(path: Path, column: str | None, step_column: str | None) -> Curve:
    keys: dict[str, None] = {}
    notes: list[str] = []
    cells: list[tuple[int, Any, Any]] = []
    with path.open(encoding="utf-8-sig") as file:
        for line, record in _records(file, notes):
            keys.update(dict.fromkeys(record))
            if column in record:
                cells.append((line, record.get(step_column or _STEP), record[column]))
    require_column(column, keys, "key")
    steps = _steps_of(list(keys), step_column)
    curve = curve_of_cells(str(column), cells, steps is not None)
    return Curve(curve.column, curve.steps, curve.values, [*notes, *curve.notes])


def _records(file: TextIO, notes: list[str]) -> Iterator[tuple[int, dict[str, Any]]]:
    """The objects with their lines; a last line that is torn is noted."""
    torn: str | None = None
    for number, line in enumerate(file, start=1):
        if torn:
            raise NoCurve(torn)
        if not line.strip():
            continue
        try:
            record = json.loads(line)
            if not isinstance(record, dict):
                raise ValueError("not an object in braces")
        except (ValueError, RecursionError) as error:
            torn = f"line {number}: not JSON as it should be ({error})."
            continue
        yield number, record
    if torn:
        notes.append(f"the last line is torn and left out: {torn}")


def _read_npz(path: Path, column: str | None, step_column: str | None) -> Curve:
    try:
        with path.open("rb") as file:  # numpy would leave a damaged one open
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, NpzFile):
                raise NoCurve("not an .npz archive.")
            require_column(column, archive.files, "array")
            steps_name = _steps_of(archive.files, step_column)
            values = _numbers(archive, str(column))
            steps = _numbers(archive, steps_name) if steps_name else counted(len(values))
    except (NoCurve, OSError):
        raise
    except Exception as error:  # there is no end to the ways in which a damaged or hostile archive fails
        raise NoCurve(f"damaged, or not an .npz archive of plain numbers ({error}).") from error
    if len(steps) != len(values):
        raise NoCurve(
            f"{steps_name!r} has {len(steps)} entries and {column!r} {len(values)}. "
            "Name other steps with `--step-column`; '' counts the values."
        )
    if not len(values):
        raise NoCurve(f"there are no numbers in {column!r}.")
    if not np.isfinite(steps).all():
        raise NoCurve(f"the steps in {steps_name!r} are not all finite.")
    return Curve(str(column), steps, values)


def _numbers(archive: NpzFile, name: str) -> NDArray[np.float64]:
    array = archive[name]
    if array.dtype.kind not in "biuf" or array.ndim != 1:
        raise NoCurve(f"{name!r} must be one row of real numbers, got {array.dtype} with {array.ndim} axes.")
    return array.astype(np.float64)


def _read_events(files: list[Path], column: str | None, step_column: str | None) -> Curve:
    if step_column:
        raise NoCurve("event files have steps of their own; leave `--step-column` out.")
    parts: list[tuple[float, list[Logged]]] = []
    tags: dict[str, None] = {}
    for file in files:
        scalars = read_event_scalars(file, keep_orphans=True)
        tags |= dict.fromkeys(scalars)
        begun = min((logged[0].wall_time for logged in scalars.values()), default=0.0)
        parts.append((begun, scalars.get(str(column), [])))
    if not tags:
        raise NoCurve("no scalars in the event files, or they are damaged.")
    require_column(column, sorted(tags), "tag")
    ordered = sorted(parts, key=lambda part: part[0])
    logged = [each for _, part in ordered for each in part]
    values = np.array([each.value for each in logged])
    if step_column == "":
        return Curve(str(column), counted(len(values)), values)
    steps = np.array([each.step for each in logged], dtype=np.float64)
    return Curve(str(column), steps, values)


def _steps_of(names: list[str], step_column: str | None) -> str | None:
    """Which of the columns has the steps, if any."""
    if step_column is None:
        return _STEP if _STEP in names else None
    if step_column:
        require_column(step_column, names)
    return step_column or None
