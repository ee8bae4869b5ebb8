# SPDX-License-Identifier: Apache-2.0
"""`lightning-stable report RUN_DIR`: what happened in a run, as two tables and a picture."""

import argparse
import math
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from lightning_stable.studies.run_log import NoRun, RunLog, newest_run, read_run
from lightning_stable.studies.table import print_table

_MOST_METRICS = 24


def main(argv: Sequence[str] | None = None) -> int:
    """Print the report of a run and draw its picture; the exit status is 2 if there is no such run.

    Args:
        argv: RUN_DIR and options; None takes those of the process.

    Example:
        >>> main(["no/such/run"])
        2
    """
    options = _parser().parse_args(argv)
    try:
        folder = newest_run(options.run_dir) if options.newest else options.run_dir
        log = read_run(folder)
        other = read_run(options.compare) if options.compare else None
    except NoRun as error:
        print(f"lightning-stable report: {error}", file=sys.stderr)
        return 2
    _print_incidents(log)
    _print_metrics(log, other)
    status = _draw(log, other, options.out or folder / "report.png")
    print(summary(log))
    return status


def summary(log: RunLog) -> str:
    """In one sentence, what the run went through.

    Args:
        log: The run.

    Example:
        >>> print(summary(RunLog(Path("runs/x"), {"val_loss": [(9, 2.5)]})))
        No incidents in 9 steps; last val_loss 2.5.
    """
    if log.incidents:
        counts = Counter(incident["response"] for incident in log.incidents)
        answers = ", ".join(f"{number} x {response}" for response, number in counts.most_common())
        lost = sum(incident.get("seconds_lost", 0.0) for incident in log.incidents)
        verb = "Halted by" if "Halt" in counts else "Survived"
        text = (
            f"{verb} {_count(len(log.incidents), 'incident')} in {log.last_step} steps ({answers}); {lost:.1f} s lost"
        )
    else:
        text = f"No incidents in {log.last_step} steps"
    final = next(((tag, log.scalars[tag]) for tag in log.scalars if "val" in tag and "loss" in tag), None)
    final = final or log.first("train*loss", "stability/loss", "*loss")
    if final is None:
        return text + "."
    return f"{text}; last {final[0]} {final[1][-1][1]:.4g}."


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="lightning-stable report",
        description="Incidents and final metrics of a run as tables, and a picture of loss, gradient norm and LR.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the logger's folder: runs/NAME/version_N")
    parser.add_argument("--newest", action="store_true", help="take the newest run below RUN_DIR")
    parser.add_argument("--compare", type=Path, metavar="RUN_DIR", help="a second run, drawn in grey")
    parser.add_argument("--out", type=Path, metavar="FILE.png", help="where the picture goes; RUN_DIR/report.png")
    return parser


def _print_incidents(log: RunLog) -> None:
    if not log.incidents:
        print(f"No incidents in {log.folder}.\n")
        return
    titles = ["step", "epoch", "batches", "signal", "value", "threshold", "response", "rolled back", "seconds lost"]
    rows = [
        [
            str(incident["step"]),
            str(incident.get("epoch", "")),
            ", ".join(map(str, incident.get("batches", []))),
            str(incident.get("signal", "")),
            _show(incident["value"]),
            _show(incident["threshold"]) if math.isfinite(incident["threshold"]) else "finite",
            incident["response"],
            str(incident.get("steps_rolled_back", "")),
            f"{incident.get('seconds_lost', 0.0):.2f}",
        ]
        for incident in log.incidents
    ]
    print_table(f"Incidents in {log.folder}", titles, rows)


def _print_metrics(log: RunLog, other: RunLog | None) -> None:
    titles = ["metric", "step", "last", "lowest", "not finite"] + (["last of the other"] if other else [])
    tags = sorted(log.scalars, key=lambda tag: (tag.count("/") > 1, tag))  # one value per layer comes last
    rows = []
    for tag in tags[:_MOST_METRICS]:
        points = log.scalars[tag]
        values = [value for _, value in points]
        finite = [value for value in values if math.isfinite(value)]
        bad = len(values) - len(finite)
        row = [tag, str(points[-1][0]), _show(values[-1]), _show(min(finite, default=math.nan)), str(bad or "")]
        if other:
            row.append(_show(other.scalars[tag][-1][1]) if tag in other.scalars else "")
        rows.append(row)
    if rows:
        print_table("Metrics", titles, rows)
    if len(tags) > _MOST_METRICS:
        print(f"and {len(tags) - _MOST_METRICS} more metrics: tensorboard --logdir {log.folder}\n")


def _draw(log: RunLog, other: RunLog | None, out: Path) -> int:
    try:
        from lightning_stable.studies.run_picture import draw
    except ModuleNotFoundError as error:
        if error.name != "matplotlib":
            raise
        print("No picture: it needs matplotlib. pip install 'lightning-stable[recipes]'", file=sys.stderr)
        return 0
    try:
        draw(log, out, other)
    except OSError as error:
        print(f"lightning-stable report: cannot write {out}: {error.strerror}.", file=sys.stderr)
        return 2
    print(f"Picture: {out}")
    return 0


def _show(value: float) -> str:
    return f"{value:.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
