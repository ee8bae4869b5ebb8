# SPDX-License-Identifier: Apache-2.0
"""What the guard costs, and what it saves: its steps, its snapshots, and a rollback instead of a restart."""

import argparse
import statistics
from collections.abc import Sequence
from dataclasses import asdict, dataclass

import torch

from lightning_stable.bench.interleaved import ratios, seconds_per_step
from lightning_stable.bench.overhead import BARE, GUARD, charlm_runs
from lightning_stable.bench.recovery_times import restart_times, rollback_times
from lightning_stable.bench.report import at_least_one, machine, new_file, show_progress, write_json
from lightning_stable.bench.snapshot_times import snapshot_times

_PARAMETERS = 50e6
_RESTARTS = 5  # each takes seconds


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: What was measured.
        milliseconds: Median.
        ratio: Median of the ratios.
        low: Lower quartile of the same.
        high: Upper quartile of the same.
        to: What it is a ratio to.
        most: What `ratio` should not exceed; `None` if nothing is promised.

    Example:
        >>> print(Row("a", milliseconds=10.4, ratio=1.04, low=1.03, high=1.05, to="b", most=1.5))
        a                                          10.4 ms  x 1.040 [1.030, 1.050] of b  <= 1.500  ok
    """

    name: str
    milliseconds: float
    ratio: float
    low: float
    high: float
    to: str
    most: float | None = None

    def __str__(self) -> str:
        spread = f"[{_short(self.low)}, {_short(self.high)}]"
        text = f"{self.name:<40}{self.milliseconds:7.1f} ms  x {_short(self.ratio)} {spread}"
        promise = "" if self.most is None else f"  <= {self.most:.3f}  {'ok' if self.ratio <= self.most else 'over'}"
        return f"{text} of {self.to}{promise}"


def main(argv: list[str] | None = None) -> int:
    """Measure, print a table, and return 0 whatever it says: a benchmark is no test.

    Args:
        argv: `--rounds`, `--threads`, `--json`; None takes the arguments of the process.

    Example:
        >>> main(["--rounds", "0"])
        Traceback (most recent call last):
            ...
        SystemExit: 2
    """
    parser = argparse.ArgumentParser(prog="lightning-stable bench guard", description=__doc__)
    parser.add_argument("--rounds", type=at_least_one, default=12, help="of each measurement (default: 12)")
    parser.add_argument("--threads", type=at_least_one, default=1, help="of torch (default: 1, which is steadiest)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the numbers there, too")
    arguments = parser.parse_args(argv)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        print(f"{machine(arguments.threads)}: median, and its ratio [quartiles]", flush=True)
        rows = measure(arguments.rounds)
    finally:
        torch.set_num_threads(threads_before)
    if arguments.json:
        write_json(arguments.json, {"machine": machine(arguments.threads), "rows": [asdict(row) for row in rows]})
    return 0


def measure(rounds: int) -> list[Row]:
    """Print and return the lines of the table.

    Args:
        rounds: Of each measurement.

    Example:
        >>> list(measure.__annotations__)
        ['rounds', 'return']
    """
    rows: list[Row] = []

    def show(*found: Row) -> None:
        show_progress(None)
        rows.extend(found)
        print("\n".join(f"  {row}" for row in found), flush=True)

    show_progress("steps of the demo's model")
    runs = charlm_runs()
    steps = seconds_per_step({name: runs[name] for name in (BARE, GUARD)}, rounds)
    show(_row("a step, guarded, without snapshots", steps[GUARD], steps[BARE], "the bare Trainer's", 1.04))
    show_progress("snapshots")
    times = snapshot_times(_PARAMETERS, rounds)
    name = f"a snapshot of {times.megabytes:.0f} MB"
    show(
        _row(name, times.snapshot, times.copy, "a plain copy", 1.5),
        _row("going back to it", times.restore, times.copy, "the same"),
    )
    show_progress("rollbacks and restarts of the demo's model")
    rollbacks, restarts = rollback_times(rounds), restart_times(min(rounds, _RESTARTS))
    restart = [statistics.median(restarts)] * len(rollbacks)
    show(_row("a rollback", rollbacks, restart, f"a restart from a checkpoint, {restart[0]:.1f} s", 1 / 20))
    return rows


def _row(name: str, seconds: Sequence[float], baseline: Sequence[float], to: str, most: float | None = None) -> Row:
    low, median, high = ratios(list(seconds), list(baseline))
    return Row(name, 1e3 * statistics.median(seconds), median, low, high, to, most)


def _short(ratio: float) -> str:
    return f"{ratio:.3f}" if ratio >= 0.1 else f"{ratio:.5f}"
