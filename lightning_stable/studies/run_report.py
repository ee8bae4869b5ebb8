# SPDX-License-Identifier: Apache-2.0
"""`lightning-stable report RUN_DIR`: what happened in a run, as two tables and a picture."""

import argparse
import math
import sys
import textwrap
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from lightning_stable.studies.pictures import try_to_draw
from lightning_stable.studies.run_log import INCIDENTS, NoRun, RunLog, lost_from, newest_run, read_run
from lightning_stable.studies.table import plain_table, printable

_TITLES = ["step", "epoch", "batch", "signal", "value", "limit"]
_MOST_INCIDENTS = 30
_MOST_METRICS = 24
_NOT_METRICS = {
    "epoch",
    "stability/global_step",
    "stability/incidents",
    "stability/warnings",
}  # said in the last sentence


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
        print(f"lightning-stable report: {printable(str(error))}", file=sys.stderr)
        return 2
    for note in (*log.notes, *(other.notes if other else ())):
        print(f"lightning-stable report: {printable(note)}", file=sys.stderr)
    _print_incidents(log)
    _print_warnings(log)
    _print_metrics(log, other)
    status = _draw(log, other, options.out or folder / "report.png")
    print(textwrap.fill(summary(log), 80, break_long_words=False, break_on_hyphens=False))
    return status


def summary(log: RunLog) -> str:
    """In one sentence, what the run went through.

    Args:
        log: The run.

    Example:
        >>> print(summary(RunLog(Path("runs/x"), {"val_loss": [(9, 2.5)]})))
        No incidents in 10 steps; last val_loss 2.5.
    """
    final = log.validation_loss or log.first("train*loss", "stability/loss", "*loss")
    lost = lost_from(log.loss)
    parts = [
        _incidents(log),
        f"warned {_count(len(log.warnings), 'time')}" if log.warnings else "",
        f"the loss is not finite from step {lost}" if lost is not None else "",
        f"last {printable(final[0])} {_show(final[1][-1][1])}" if final else "",
    ]
    return "; ".join(part for part in parts if part) + "."


def _incidents(log: RunLog) -> str:
    steps = _count(log.optimizer_steps, "optimizer step" if "stability/global_step" in log.scalars else "step")
    if log.steps_tried > log.optimizer_steps:
        steps += f" ({log.steps_tried} tried)"
    if not log.incidents:
        return f"No incidents in {steps}"
    counts = Counter(incident["response"] for incident in log.incidents)
    answers = ", ".join(f"{number} x {printable(response)}" for response, number in counts.most_common())
    seconds = sum(incident.get("seconds_lost", 0.0) for incident in log.incidents)
    verb = "Halted by" if "Halt" in counts else "Survived"
    return f"{verb} {_count(len(log.incidents), 'incident')} ({answers}) in {steps}, {seconds:.1f} s lost"


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
    titles = [*_TITLES, "response", "undone"]
    titles += ["cause"] if any(incident.get("cause") for incident in log.incidents) else []
    rows = [
        [
            *_told(incident),
            incident["response"],
            str(incident.get("steps_rolled_back") or ""),
            str(incident.get("cause", "")).partition(":")[0],
        ][: len(titles)]
        for incident in log.incidents[:_MOST_INCIDENTS]
    ]
    print(plain_table(f"Incidents in {log.folder}", titles, rows))
    _print_more(log, log.incidents, "incidents")


def _print_warnings(log: RunLog) -> None:
    if not log.warnings:
        return
    rows = [[*_told(warning), ", ".join(warning["notes"])] for warning in log.warnings[:_MOST_INCIDENTS]]
    print(plain_table(f"Warnings in {log.folder}, about which nothing was done", [*_TITLES, "notes"], rows))
    _print_more(log, log.warnings, "warnings")


def _told(incident: dict[str, Any]) -> list[str]:
    return [
        str(incident["step"]),
        str(incident.get("epoch", "")),
        _span(incident.get("batches", [])),
        str(incident.get("signal", "")).removeprefix("stability/"),
        _show(incident["value"]),
        _show(incident["threshold"]) if math.isfinite(incident["threshold"]) else "finite",
    ]


def _print_more(log: RunLog, told: Sequence[dict[str, Any]], noun: str) -> None:
    if len(told) > _MOST_INCIDENTS:
        print(f"and {len(told) - _MOST_INCIDENTS} more {noun}: {log.folder / INCIDENTS}\n")


def _print_metrics(log: RunLog, other: RunLog | None) -> None:
    titles = ["metric", "last", "lowest", "not finite"] + (["other"] if other else [])
    tags = [tag for tag in log.scalars if tag not in _NOT_METRICS and not _is_of_one_layer(tag)]
    rows = []
    for tag in tags[:_MOST_METRICS]:
        values = [value for _, value in log.scalars[tag]]
        finite = [value for value in values if math.isfinite(value)]
        bad = len(values) - len(finite)
        row = [tag, _show(values[-1]), _show(min(finite, default=math.nan)), str(bad or "")]
        if other:
            row.append(_show(other.scalars[tag][-1][1]) if tag in other.scalars else "")
        rows.append(row)
    if rows:
        print(plain_table(f"Metrics; other is {other.folder}" if other else "Metrics", titles, rows))
    left = len(log.scalars.keys() - _NOT_METRICS) - len(rows)
    if left:
        print(f"and {_count(left, 'more metric')}: tensorboard --logdir {log.folder}\n")


def _is_of_one_layer(tag: str) -> bool:
    """`stability/attention_entropy/blocks.3.attn`, beside which there is one over all layers."""
    return tag.count("/") > 1 and "." in tag.rpartition("/")[2]


def _draw(log: RunLog, other: RunLog | None, out: Path) -> int:
    def draw_run() -> None:
        from lightning_stable.studies.run_picture import draw

        draw(log, out, other)

    return try_to_draw("lightning-stable report", out, draw_run)


def _span(batches: list[int]) -> str:
    """`7`, or `4-7` for the batches of one accumulation window."""
    return "-".join(str(batch) for batch in dict.fromkeys([*batches[:1], *batches[-1:]]))


def _show(value: float) -> str:
    return f"{value:.4g}"


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}" + ("" if number == 1 else "s")
