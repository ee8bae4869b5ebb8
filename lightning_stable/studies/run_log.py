# SPDX-License-Identifier: Apache-2.0
"""Read what a run left behind: scalars from TensorBoard or CSVLogger, and the guard's incidents. Needs no torch."""

import csv
import json
import math
from dataclasses import dataclass, field
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import Any

from lightning_stable.studies.event_files import DamagedEvents, read_event_scalars

INCIDENTS = "incidents.jsonl"
WARNING = "Warning"  # the response of what people were only told of
Points = list[tuple[int, float]]
"""Steps and values, in order of the steps."""


class NoRun(ValueError):
    """A folder that no run was logged to.

    Example:
        >>> str(NoRun("nothing here"))
        'nothing here'
    """


@dataclass
class RunLog:
    """The scalars and incidents of one run.

    Args:
        folder: Where it was logged to.
        scalars: From tag to its points.
        incidents: The guard's interventions, as in `incidents.jsonl`, their numbers as floats.
        notes: What could not be read, in words.
        warnings: What the guard has only warned of, as in `incidents.jsonl` too.

    Example:
        >>> log = RunLog(Path("runs/x"), {"train_loss": [(0, 4.0), (1, 3.0)], "train_loss_epoch": [(1, 3.5)]})
        >>> log.first("stability/loss", "*loss")
        ('train_loss', [(0, 4.0), (1, 3.0)])
    """

    folder: Path
    scalars: dict[str, Points] = field(default_factory=dict)
    incidents: list[dict[str, Any]] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    warnings: list[dict[str, Any]] = field(default_factory=list)

    def first(self, *patterns: str) -> tuple[str, Points] | None:
        """The first tag that is there: exactly, as `text*` from its beginning, or as `*text` anywhere.

        Args:
            *patterns: In order of preference. A tag of validation, test or epoch means is found by its exact name only.
        """
        for pattern in patterns:
            for tag in self.scalars:
                if tag == pattern or (_is_training(tag) and _matches(tag, pattern)):
                    return tag, self.scalars[tag]
        return None

    @property
    def name(self) -> str:
        """What the run is called: its folder and the one above, `charlm_stable/version_0`."""
        return "/".join(self.folder.resolve().parts[-2:])

    @property
    def loss(self) -> Points:
        """The training loss, step by step as far as it was logged."""
        return self._points("stability/loss", "train_loss", "train/loss", "train*loss", "loss", "*loss")

    @property
    def gradient_norm(self) -> Points:
        """The gradient norm before clipping."""
        return self._points("stability/grad_norm", "grad_norm", "*grad_norm")

    @property
    def learning_rate(self) -> Points:
        """The learning rate of the first parameter group."""
        return self._points("stability/lr", "lr", "lr-*", "learning_rate", "*lr")

    @property
    def validation_loss(self) -> tuple[str, Points] | None:
        """Tag and points of the validation loss."""
        return next(((tag, self.scalars[tag]) for tag in self.scalars if "val" in tag and "loss" in tag), None)

    @property
    def steps_tried(self) -> int:
        """Steps on the x axis, which counts from 0 and never goes back."""
        return self.last_step + 1 if self.scalars or self.incidents or self.warnings else 0

    @property
    def optimizer_steps(self) -> int:
        """Steps that count: those tried, less what the guard skipped or rolled back."""
        counted = self.scalars.get("stability/global_step")
        if not counted:
            return self.steps_tried
        step, count = counted[-1]  # logged at every incident, so that all steps after it count
        return int(count) + self.last_step - step

    @property
    def last_step(self) -> int:
        """The largest step of any scalar, incident or warning."""
        ends = [points[-1][0] for points in self.scalars.values() if points]
        return max([*ends, *(told["step"] for told in (*self.incidents, *self.warnings))], default=0)

    def _points(self, *patterns: str) -> Points:
        found = self.first(*patterns)
        return found[1] if found else []


def read_run(folder: Path) -> RunLog:
    """Read the run that was logged to `folder`.

    Args:
        folder: A logger's folder, with TensorBoard event files or `metrics.csv`, for example `runs/NAME/version_0`.

    Raises:
        NoRun: If there is no such folder or nothing to read in it, or an event file is damaged, or `incidents.jsonl`
            before its last line.

    Example:
        >>> read_run(Path("no/such/run"))
        Traceback (most recent call last):
            ...
        lightning_stable.studies.run_log.NoRun: no/such/run: no such directory.
    """
    if not folder.is_dir():
        raise NoRun(f"{folder}: no such directory.")
    scalars = _read_events(folder) if any(folder.glob("*tfevents*")) else _read_csv(folder / "metrics.csv")
    told, notes = _read_incidents(folder / INCIDENTS)
    if not scalars and not told:
        raise NoRun(f"{folder}: no TensorBoard event files, no metrics.csv and no {INCIDENTS}.{runs_below(folder)}")
    incidents = [one for one in told if one["response"] != WARNING]
    return RunLog(folder, scalars, incidents, notes, [one for one in told if one["response"] == WARNING])


def newest_run(folder: Path) -> Path:
    """The run below `folder` that was written to last.

    Args:
        folder: For example `runs`.

    Raises:
        NoRun: If there is none.

    Example:
        >>> newest_run(Path("no/such/folder"))
        Traceback (most recent call last):
            ...
        lightning_stable.studies.run_log.NoRun: no/such/folder: no run in it.
    """
    logs = [path for pattern in ("*tfevents*", "metrics.csv") for path in folder.rglob(pattern)]
    if not logs:
        raise NoRun(f"{folder}: no run in it.")
    return max(logs, key=lambda path: path.stat().st_mtime).parent


def runs_below(folder: Path) -> str:
    """The first runs inside `folder` as a question, for somebody who gave a folder of runs in place of one.

    Args:
        folder: For example `runs`.

    Example:
        >>> runs_below(Path("no/such/folder"))
        ''
    """
    runs = sorted({path.parent for pattern in ("*tfevents*", "metrics.csv") for path in folder.rglob(pattern)})
    return f" Did you mean {' or '.join(map(str, runs[:3]))}?" if runs else ""


def not_finite_stretches(points: Points) -> list[tuple[int, int]]:
    """From where to where a series is NaN or infinite, each at least one step long.

    Args:
        points: Steps and values.

    Example:
        >>> not_finite_stretches([(0, 1.0), (5, float("nan")), (6, float("inf")), (8, 2.0), (9, float("nan"))])
        [(5, 8), (9, 10)]
    """
    stretches: list[tuple[int, int]] = []
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


def lost_from(points: Points) -> int | None:
    """The step from which a series is NaN or infinite to its end; None if it ends well.

    Args:
        points: Steps and values.

    Example:
        >>> lost_from([(0, float("nan")), (1, 2.0), (2, float("nan")), (3, float("inf"))])
        2
    """
    if not points or math.isfinite(points[-1][1]):
        return None
    return not_finite_stretches(points)[-1][0]


def _read_events(folder: Path) -> dict[str, Points]:
    try:
        scalars = read_event_scalars(folder)
    except DamagedEvents as error:
        raise NoRun(str(error)) from error
    return {tag: _in_order([(each.step, each.value) for each in logged]) for tag, logged in scalars.items()}


def _read_csv(path: Path) -> dict[str, Points]:
    if not path.is_file():
        return {}
    scalars: dict[str, Points] = {}
    with path.open(newline="", encoding="utf-8", errors="replace") as file:
        try:
            for row in csv.DictReader(file):
                step = _number(row.pop("step", None) or "")
                if step is None or not math.isfinite(step):
                    continue
                for tag, text in row.items():
                    if tag and isinstance(text, str) and (value := _number(text)) is not None:
                        scalars.setdefault(tag, []).append((int(step), value))
        except csv.Error as error:
            raise NoRun(f"{path}: not a table ({error}).") from error
    return {tag: _in_order(points) for tag, points in sorted(scalars.items())}


def _in_order(points: Points) -> Points:
    """By step; of several values at one step the one written last stays."""
    return [list(same)[-1] for _, same in groupby(sorted(points, key=itemgetter(0)), key=itemgetter(0))]


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def _read_incidents(path: Path) -> tuple[list[dict[str, Any]], list[str]]:
    if not path.is_file():
        return [], []
    incidents: list[dict[str, Any]] = []
    lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    for number, line in enumerate(lines, start=1):
        try:
            incidents.append(_incident(line))
        except (ValueError, TypeError, KeyError, OverflowError, RecursionError) as error:
            if number == len(lines):
                return incidents, [f"{path}, line {number}: torn, left out."]
            raise NoRun(f"{path}, line {number}: not an incident ({error}).") from error
    return incidents, []


def _incident(line: str) -> dict[str, Any]:
    incident = dict(json.loads(line))
    numbers = {key: _float(incident.get(key)) for key in ("value", "threshold")}
    batches = [int(batch) for batch in list(incident.get("batches", []))]
    return {
        **incident,
        **numbers,
        "step": int(incident["step"]),
        "response": str(incident["response"]),
        "batches": batches,
        "notes": [str(note) for note in list(incident.get("notes", []))],
        "seconds_lost": float(incident.get("seconds_lost", 0.0)),
    }


def _float(value: Any) -> float:
    return math.nan if value is None else float(value)


def _is_training(tag: str) -> bool:
    return not any(word in tag.lower() for word in ("val", "test", "epoch"))


def _matches(tag: str, pattern: str) -> bool:
    if pattern.startswith("*"):
        return pattern[1:] in tag.lower()
    return pattern.endswith("*") and tag.startswith(pattern[:-1])
