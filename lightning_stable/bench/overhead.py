# SPDX-License-Identifier: Apache-2.0
"""What the callbacks cost a step: interleaved in one process, as ratios to the bare Trainer."""

import argparse
import statistics
from dataclasses import asdict, dataclass
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import SpikeDetection
from torch import nn
from torch.utils.data import DataLoader

from lightning_stable.bench.interleaved import CYCLE, Make, ratios, seconds_per_step
from lightning_stable.bench.report import at_least_one, machine, new_file, write_json
from lightning_stable.callbacks import MomentumReset
from lightning_stable.guard import Halt, SkipStep, SpikeGuard
from lightning_stable.monitors import AttentionEntropyMonitor, GradientNormMonitor
from lightning_stable.testbeds import CharLM, PythonTextDataModule

BARE = "bare Trainer"
GUARD, SNAPSHOTS = "SpikeGuard, no snapshots", f"SpikeGuard, snapshot every {CYCLE}"
ENTROPY = f"AttentionEntropyMonitor every {CYCLE}"
_TINY_ROUNDS = 5  # times as many: a tiny step is short, and its noise large


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: What was measured.
        microseconds: Median of a step; of a difference, of what it adds to a step.
        ratio: Median over the rounds, to the bare Trainer in the same round.
        low: Lower quartile of the same.
        high: Upper quartile of the same.
        bound: What `ratio` should not exceed; `None` if nothing is promised.

    Example:
        >>> print(Row("a", microseconds=104.0, ratio=1.04, low=1.03, high=1.05, bound=1.05))
        a                                       104 us  x 1.040 [1.030, 1.050]  <= 1.050  ok
    """

    name: str
    microseconds: float
    ratio: float
    low: float
    high: float
    bound: float | None = None

    @property
    def is_over(self) -> bool:
        """Whether more was measured than was promised."""
        return self.bound is not None and self.ratio > self.bound

    def __str__(self) -> str:
        line = f"{self.name:<34}{self.microseconds:9.0f} us  x {self.ratio:.3f} [{self.low:.3f}, {self.high:.3f}]"
        return line if self.bound is None else f"{line}  <= {self.bound:.3f}  {'over' if self.is_over else 'ok'}"


class _TinyMLP(LightningModule):
    """A model so small that a step is nothing but overhead."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.layers(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


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
    parser = argparse.ArgumentParser(prog="lightning-stable bench overhead", description=__doc__)
    parser.add_argument("--rounds", type=at_least_one, default=12, help=f"of {CYCLE} steps each (default: 12)")
    parser.add_argument("--threads", type=at_least_one, default=1, help="of torch (default: 1, which is steadiest)")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the numbers there, too")
    arguments = parser.parse_args(argv)
    threads_before = torch.get_num_threads()
    torch.set_num_threads(arguments.threads)
    try:
        report = measure(arguments.rounds)
    finally:
        torch.set_num_threads(threads_before)
    if arguments.json:
        write_json(arguments.json, {"machine": machine(arguments.threads), **_as_json(report)})
    return 0


def measure(rounds: int) -> dict[str, list[Row]]:
    """Print and return the tables: a step of the demo's model, and one of a tiny MLP.

    Args:
        rounds: Of 50 steps each; the tiny MLP gets five times as many.

    Example:
        >>> list(measure.__annotations__)
        ['rounds', 'return']
    """
    print(machine(torch.get_num_threads()))
    report = {}
    for title, runs, to_rows, factor in (
        ("a step of charlm_stable's model", charlm_runs(), charlm_rows, 1),
        ("a step of a tiny MLP", _tiny_runs(), tiny_rows, _TINY_ROUNDS),
    ):
        print(f"\n{title}: median, and its ratio to the bare Trainer [quartiles] in {rounds * factor} rounds")
        report[title] = to_rows(seconds_per_step(runs, rounds * factor))
        print("\n".join(f"  {row}" for row in report[title]), flush=True)
    return report


def charlm_rows(seconds: dict[str, list[float]]) -> list[Row]:
    """The table of the demo's model, from the mean seconds a step in every round.

    Args:
        seconds: From the run's name to its rounds.

    Example:
        >>> names = (BARE, GUARD, SNAPSHOTS, ENTROPY)
        >>> rows = charlm_rows(dict(zip(names, ([1.0, 1.0], [1.1, 1.1], [1.2, 1.2], [1.0, 1.0]))))
        >>> [(round(row.ratio, 3), row.is_over) for row in rows]
        [(1.0, False), (1.1, True), (1.2, False), (0.1, True), (1.0, False)]
    """
    bounds = {GUARD: 1.04, ENTROPY: 1.02}
    rows = []
    for name, values in seconds.items():
        rows.append(_row(name, values, seconds[BARE], bounds.get(name)))
        if name == SNAPSHOTS:
            extra = [ours - theirs for ours, theirs in zip(values, seconds[GUARD], strict=True)]
            rows.append(_row("  what the snapshots add", extra, seconds[BARE], 0.03))
    return rows


def tiny_rows(seconds: dict[str, list[float]]) -> list[Row]:
    """The table of the tiny MLP; the guard is to be cheaper than Lightning's own `SpikeDetection`.

    Args:
        seconds: From the run's name to its rounds.

    Example:
        >>> rows = tiny_rows({BARE: [1.0, 1.0], "SpikeDetection": [1.5, 1.5], GUARD: [1.25, 1.25]})
        >>> [(row.ratio, row.bound) for row in rows]
        [(1.0, None), (1.5, None), (1.25, 1.5)]
    """
    rows = [_row(name, values, seconds[BARE], None) for name, values in seconds.items() if name != GUARD]
    rival = next(row.ratio for row in rows if row.name == "SpikeDetection")
    return [*rows, _row(GUARD, seconds[GUARD], seconds[BARE], rival)]


def _row(name: str, seconds: list[float], baseline: list[float], bound: float | None) -> Row:
    low, median, high = ratios(seconds, baseline)
    return Row(name, 1e6 * statistics.median(seconds), median, low, high, bound)


def charlm_runs() -> dict[str, Make]:
    """The demo's model with one callback each, by what is measured.

    Example:
        >>> next(iter(charlm_runs()))
        'bare Trainer'
    """
    callbacks = {
        BARE: list,
        GUARD: lambda: [SpikeGuard(ladder=[SkipStep(), Halt()])],
        SNAPSHOTS: lambda: [SpikeGuard(snapshot_every=CYCLE)],
        ENTROPY: lambda: [AttentionEntropyMonitor(every_n_steps=CYCLE)],
        "GradientNormMonitor": lambda: [GradientNormMonitor()],
        "MomentumReset every 500": lambda: [MomentumReset()],
    }
    return {name: partial(_charlm, make) for name, make in callbacks.items()}


def _charlm(callbacks: Any) -> tuple[LightningModule, Any, list[Callback]]:
    data = PythonTextDataModule(context=64)
    model = CharLM(n_layer=3, d_model=96, context=64, lr=3e-4)  # of the recipe; the low rate keeps it from spiking
    return model, data.train_dataloader(), callbacks()


def _tiny_runs() -> dict[str, Make]:
    callbacks = {
        BARE: list,
        "SpikeDetection": lambda: [SpikeDetection(rtol=1e9)],  # so that it never ends the run
        GUARD: lambda: [SpikeGuard(ladder=[SkipStep(), Halt()])],
    }
    return {name: partial(_tiny, make) for name, make in callbacks.items()}


def _tiny(callbacks: Any) -> tuple[LightningModule, Any, list[Callback]]:
    batches: Any = [(torch.zeros(8, 16), torch.ones(8, 1))] * 100_000
    return _TinyMLP(), DataLoader(batches, batch_size=None), callbacks()


def _as_json(report: dict[str, list[Row]]) -> dict[str, Any]:
    return {title: [asdict(row) | {"is_over": row.is_over} for row in rows] for title, rows in report.items()}
