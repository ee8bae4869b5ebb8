# SPDX-License-Identifier: Apache-2.0
"""`lightning-stable detect`: a logged curve through detectors, as tables and a picture."""

import argparse
import math
import sys
import textwrap
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from lightning_stable.studies.curve import Curve, NoCurve, as_number
from lightning_stable.studies.curve_files import read_curve
from lightning_stable.studies.detector_choice import DetectorChoice, WrongDetector, choose_detector
from lightning_stable.studies.false_alarms import Budget, Suggestion, budget_of, suggest
from lightning_stable.studies.pictures import try_to_draw
from lightning_stable.studies.progress import ProgressLine
from lightning_stable.studies.replay import Replay, replay
from lightning_stable.studies.table import plain_table, printable

_DEFAULT = ("MedianDeviation(min_ratio=1.05)", "LevelShift")  # single values, 5 % up at least; and slow divergence
_MOST_STREAKS = 10
_LARGE = 20e6  # bytes, which take some seconds to read
_PROGRAM = "lightning-stable detect"
_EXAMPLES = """\
detectors, in quotation marks, since a shell takes brackets for its own:
  --detector ZScore
  --detector 'LevelShift(min_rise=0.2)' --detector 'MedianDeviation(threshold=6, window=128)'
  --detector 'Consecutive(detector=ZScore(threshold=5), times=3)'
  --detector '{class_path: LevelShift, init_args: {min_rise: 0.2}}'      as in YAML
  --detector my_package.MyDetector

examples:
  lightning-stable detect --values run.csv                               which columns there are
  lightning-stable detect --values run.csv --column loss
  lightning-stable detect --values runs/mine/version_0 --column stability/grad_norm --detector 'Ratio(ratio=5)'
  lightning-stable detect --values run.npz --column loss --healthy 2000:90000 --false-alarms-per-million 10
"""


def main(argv: Sequence[str] | None = None) -> int:
    """Replay a curve, print what the detectors say and draw it; the exit status is 2 if something cannot be read.

    Args:
        argv: Options; None takes those of the process.

    Example:
        >>> main(["--values", "no/such/run.csv", "--column", "loss"])
        2
    """
    options = _parser().parse_args(argv)
    try:
        choices = list({each.label: each for each in map(choose_detector, options.detector or _DEFAULT)}.values())
        _say_if_large(options.values)
        curve = read_curve(options.values, options.column, options.step_column)
        healthy = _healthy(curve, options.healthy)
    except (NoCurve, WrongDetector) as error:
        print(f"{_PROGRAM}: {printable(str(error))}", file=sys.stderr)
        return 2
    for note in curve.notes:
        print(f"{_PROGRAM}: {options.values}: {printable(note)}", file=sys.stderr)
    progress = ProgressLine(sys.stderr)
    replays = [replay(choice.label, choice.build(), curve, progress) for choice in choices]
    progress.clear()
    title = f"{curve.column} of {_name(options.values)}"
    print(_summary(curve, title))
    _print_counts(replays)
    for one in replays:
        _print_alarms(one)
    budget = budget_of(options.false_alarms_per_million, healthy)
    suggestions = [suggest(choice, curve, healthy, budget.allowed, progress) for choice in choices]
    progress.clear()
    _print_suggestions(choices, suggestions, budget, options.healthy is not None)
    return try_to_draw(_PROGRAM, options.out, lambda: _draw(replays, title, options.out))


def _draw(replays: list[Replay], title: str, out: Path) -> None:
    from lightning_stable.studies.replay_picture import draw

    draw(replays, title, out)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="Which alarms detectors would have raised on a logged curve, and with which threshold they would "
        "be quiet on it.",
        epilog=_EXAMPLES,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = parser.add_argument
    add(
        "--values",
        type=Path,
        required=True,
        metavar="PATH",
        help=".csv with titles, .jsonl, .npz, a TensorBoard event file, or the folder of a run",
    )
    add("--column", metavar="NAME", help="title, key, array or tag; left out, those there are are listed")
    add("--step-column", metavar="NAME", help="x axis; by default 'step' if there is one; '' counts the values")
    add(
        "--detector",
        action="append",
        metavar="DETECTOR",
        help=f"one of `lightning-stable techniques`, see below; may be repeated; by default {' and '.join(_DEFAULT)}",
    )
    add(
        "--false-alarms-per-million",
        type=_rate,
        default=1.0,
        metavar="N",
        help="for which thresholds are suggested; by default 1",
    )
    add(
        "--healthy",
        type=_span,
        metavar="FROM:TO",
        help="steps between which every alarm is a false one, both included; by default all",
    )
    add("--out", type=Path, default=Path("detect.png"), metavar="FILE.png", help="the picture; by default detect.png")
    return parser  # fmt: skip


def _rate(text: str) -> float:
    rate = as_number(text)
    if rate is None or not 0 <= rate <= 1e6:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1000000, got {text!r}")
    return rate


def _span(text: str) -> tuple[float, float]:
    begin, colon, end = text.partition(":")
    try:
        span = float(begin or "-inf"), float(end or "inf")
    except ValueError:
        span = math.nan, math.nan
    if not colon or not span[0] <= span[1]:
        raise argparse.ArgumentTypeError(f"must be two steps such as 1000:90000, 1000: or :90000, got {text!r}")
    return span


def _say_if_large(path: Path) -> None:
    size = sum(file.stat().st_size for file in (path.glob("*tfevents*") if path.is_dir() else [path]) if file.is_file())
    if size > _LARGE:
        print(f"{_PROGRAM}: reading {size / 1e6:.0f} MB", file=sys.stderr)


def _healthy(curve: Curve, span: tuple[float, float] | None) -> NDArray[np.bool_]:
    begin, end = span or (-math.inf, math.inf)
    healthy = (curve.steps >= begin) & (curve.steps <= end)
    if not healthy.any():
        steps = f"{_show(curve.steps.min())} to {_show(curve.steps.max())}"
        raise NoCurve(f"there is no value in `--healthy {begin:g}:{end:g}`; the steps are {steps}.")
    return healthy


def _summary(curve: Curve, title: str) -> str:
    finite = curve.values[np.isfinite(curve.values)]
    between = f", from {_show(finite.min())} to {_show(finite.max())}" if len(finite) else ""
    back = f"; the steps go back {_times(len(curve.rewinds))}, values stay in the order of writing"
    return textwrap.fill(
        f"{title}: {len(curve)} values, steps {_show(curve.steps.min())} to {_show(curve.steps.max())}{between}; "
        f"{curve.not_finite} not finite{back if len(curve.rewinds) else ''}.\n",
        100,
    ) + "\n"  # fmt: skip


def _print_counts(replays: list[Replay]) -> None:
    titles = ["detector", "alarms", "streaks", "per million", "not finite"]
    rows = [
        [
            one.label,
            str(len(one.alarms)),
            str(len(one.streaks)),
            _show(one.per_million) if one.per_million < 1e4 else f"{one.per_million:.0f}",
            str(int((~np.isfinite(one.curve.values[one.alarms])).sum())),
        ]
        for one in replays
    ]
    print(plain_table("Alarms; streaks: those together that follow each other; not finite: at NaN and infinity",
                      titles, rows))  # fmt: skip
    for one in replays:
        if one.had_no_limit and not one.label.startswith("NonFinite("):  # which has none to have
            print(f"{one.label} never had a limit: the curve is too short for it.\n")


def _print_alarms(one: Replay) -> None:
    streaks, scan = one.streaks, one.scan
    if not streaks:
        return
    what = ["level", "limit"] if one.judges_level else ["value", "threshold"]
    rows = [
        [
            _show(one.curve.steps[streak.first]),
            _show(one.judged[streak.first] if np.isfinite(one.curve.values[streak.first])
                  else one.curve.values[streak.first]),
            _show(one.limit[streak.first]),
            _show(scan.score[streak.first]),
            str(streak.length),
        ]
        for streak in streaks[:_MOST_STREAKS]
    ]  # fmt: skip
    print(plain_table(one.label, ["step", *what, "score", "in a row"], rows))
    if len(streaks) > _MOST_STREAKS:
        print(f"and {len(streaks) - _MOST_STREAKS} streaks more\n")


def _print_suggestions(
    choices: list[DetectorChoice], suggestions: list[Suggestion | None], budget: Budget, is_chosen: bool
) -> None:
    rows = []
    for choice, one in zip(choices, suggestions, strict=True):
        if one is None:
            rows.append([choice.label, "none to tune", "", "", "", ""])
            continue
        suggested = "any" if one.is_floor else _show(one.value, 12)
        rows.append([choice.label, one.argument, _show(one.before, 12), str(one.alarms_before), suggested,
                     str(one.alarms)])  # fmt: skip
    where = f"the {budget.values} values of `--healthy`" if is_chosen else f"{budget.values} values"
    rate = f"{_show(budget.rate)} false alarm{'' if budget.rate == 1 else 's'} per million"
    title = f"Suggested: the most sensitive threshold with at most {rate}, tried on {where}"
    print(plain_table(title, ["detector", "argument", "now", "alarms", "suggested", "alarms"], rows))
    for one in suggestions:
        if one and one.is_floor:
            print(f"{one.choice.config['class_path'].rpartition('.')[2]}: whatever `{one.argument}` is, its other "
                  "arguments keep it quiet here.")  # fmt: skip
    changed = [one.choice.label for one in suggestions if one and not one.is_floor and one.value != one.before]
    if changed:
        print("Try it: " + " ".join(f"--detector '{label}'" for label in changed))
    print(textwrap.fill(_caution(budget, is_chosen), 100, break_long_words=False, break_on_hyphens=False) + "\n")


def _caution(budget: Budget, is_chosen: bool) -> str:
    text = "" if is_chosen else (
        "Every alarm at a finite value counts as a false one; `--healthy FROM:TO` says between which steps that is so. "
    )  # fmt: skip
    if budget.is_too_short:
        needed = f", less than the {_show(1e6 / budget.rate)} in which one alarm is allowed" if budget.rate else ""
        text += f"{budget.values} values{needed}: the thresholds are those for no alarm at all on this curve."
    else:
        text += f"{_show(budget.rate)} per million are {budget.allowed} in {budget.values} values."
    return text


def _name(path: Path) -> str:
    """`run.csv`, or for a folder also the one above, `mine/version_0`."""
    return "/".join(path.resolve().parts[-2:]) if path.is_dir() else path.name


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _show(value: float, digits: int = 4) -> str:
    return f"{value:.0f}" if float(value).is_integer() and abs(value) < 1e15 else f"{value:.{digits}g}"
