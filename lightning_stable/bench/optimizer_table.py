# SPDX-License-Identifier: Apache-2.0
"""The table of `lightning-stable bench optimizers`, and what is promised of it."""

import statistics
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from lightning_stable.bench.interleaved import ratios
from lightning_stable.bench.step_turns import Measured

FUSED, FOREACH = "AdamW fused", "AdamW foreach"
OURS, SPIKING, RIVAL = ("SPAM", "StableSPAM"), ", every tensor spiking", "pytorch_optimizer."

_JUDGED_FROM = 40_000_000  # parameters; what is promised is promised of 50M
_FULL_STATE = 8.1  # bytes a parameter: two float32 moments, and a little


@dataclass(frozen=True)
class Row:
    """One line of the table.

    Args:
        name: What was measured.
        milliseconds: Median of a step.
        to_fused: Lower quartile, median and upper quartile over the rounds of the ratio to `AdamW(fused=True)`.
        to_foreach: Median ratio to `AdamW(foreach=True)`.
        state: Bytes a parameter between steps.
        extra: Bytes a parameter on top of that, at the highest within a step.
        waits: Whether a step waits for the device; `None` on CPU.

    Example:
        >>> print(Row("a", milliseconds=2.0, to_fused=(1.0, 1.1, 1.2), to_foreach=0.5, state=8.0, extra=0.1))
        a                                          2.0    1.10 [1.00, 1.20]      0.50    8.00    0.10
    """

    name: str
    milliseconds: float
    to_fused: tuple[float, float, float]
    to_foreach: float
    state: float
    extra: float
    waits: bool | None = None

    def __str__(self) -> str:
        low, median, high = map(_short, self.to_fused)
        times = f"{self.milliseconds:9.1f}  {median:>6} [{low}, {high}]".ljust(33)
        line = f"{self.name:<37}{times}{_short(self.to_foreach):>7}{self.state:8.2f}{self.extra:8.2f}"
        return line if self.waits is None else f"{line}  {'yes' if self.waits else 'no':>5}"


@dataclass(frozen=True)
class Promise:
    """What a number should not exceed, or not fall short of.

    Args:
        name: Of the number.
        value: What was measured.
        bound: What was promised.
        at_least: Whether the bound is a lower one.

    Example:
        >>> print(Promise("SPAM: a step, to fused AdamW", value=1.5, bound=2.0))
        SPAM: a step, to fused AdamW                                       1.50  <= 2.00  ok
    """

    name: str
    value: float
    bound: float
    at_least: bool = False

    @property
    def is_over(self) -> bool:
        """Whether it was not kept."""
        return self.value < self.bound if self.at_least else self.value > self.bound

    def __str__(self) -> str:
        verdict = "over" if self.is_over else "ok"
        return f"{self.name:<63}{self.value:8.2f}  {'>=' if self.at_least else '<='} {self.bound:.2f}  {verdict}"


@dataclass(frozen=True)
class Table:
    """What was measured at one size.

    Args:
        parameters: Their number.
        tensors: Their number.
        rounds: Of which the medians are.
        rows: One for each optimizer.
        speed_ups: How many times faster ours are than the faster one of pytorch_optimizer's; empty without it.
        promises: With what was found; none for fewer than 40M parameters.

    Example:
        >>> Table(parameters=10, tensors=1, rounds=5, rows=[], speed_ups={}, promises=[]).as_json()["tensors"]
        1
    """

    parameters: int
    tensors: int
    rounds: int
    rows: list[Row]
    speed_ups: dict[str, float]
    promises: list[Promise]

    def as_json(self) -> dict[str, Any]:
        """Return it as what JSON can hold, with the verdicts."""
        promises = [asdict(promise) | {"is_over": promise.is_over} for promise in self.promises]
        return asdict(self) | {"promises": promises}

    def __str__(self) -> str:
        title = (
            f"{self.parameters:,} parameters in {self.tensors} tensors: median of a step, its ratio to AdamW fused "
            f"[quartiles]\nand to foreach in {self.rounds} rounds; bytes a parameter of state, and extra within a step"
        )
        waits = any(row.waits is not None for row in self.rows)
        head = f"{'':<37}{'ms':>9}   x fused{'x foreach':>21}{'state':>8}{'extra':>8}{'  waits' * waits}"
        faster = [f"{name} is {ratio:.1f} x faster than {RIVAL}{name}" for name, ratio in self.speed_ups.items()]
        return "\n".join([title, *(f"  {line}" for line in (head, *self.rows, *faster, *self.promises))])


def make_table(measured: Mapping[str, Measured], parameters: int, tensors: int, device: str) -> Table:
    """Compute ratios, bytes a parameter, and whether the promises are kept.

    Args:
        measured: By the names of the rows, the two of AdamW among them.
        parameters: Their number.
        tensors: Their number.
        device: Its type; more is promised of CUDA's times, and nothing of its extra memory.

    Example:
        >>> adamw, ours = Measured([1.0, 2.0], 80, 0), Measured([1.5, 3.0], 80, 20)
        >>> table = make_table({FUSED: adamw, FOREACH: adamw, "SPAM": ours}, parameters=10, tensors=1, device="cpu")
        >>> table.rows[2].to_fused[1], table.rows[2].state, table.rows[2].extra
        (1.5, 8.0, 2.0)
    """
    rows = {name: _row(name, found, measured, parameters) for name, found in measured.items()}
    speed_ups = {name: _speed_up(name, measured) for name in OURS if RIVAL + name in measured}
    promises = list(_promises(rows, speed_ups, device)) if parameters >= _JUDGED_FROM else []
    rounds = len(measured[FUSED].seconds)
    return Table(parameters, tensors, rounds, list(rows.values()), speed_ups, promises)


def _short(ratio: float) -> str:
    return f"{ratio:.2f}" if ratio < 100 else f"{ratio:.0f}"


def _row(name: str, found: Measured, measured: Mapping[str, Measured], parameters: int) -> Row:
    return Row(
        name,
        milliseconds=1e3 * statistics.median(found.seconds),
        to_fused=ratios(found.seconds, measured[FUSED].seconds),
        to_foreach=ratios(found.seconds, measured[FOREACH].seconds)[1],
        state=found.state_bytes / parameters,
        extra=found.extra_bytes / parameters,
        waits=found.waits,
    )


def _speed_up(name: str, measured: Mapping[str, Measured]) -> float:
    """To the faster of the rival's ways."""
    rivals = [found.seconds for rival, found in measured.items() if rival.partition(",")[0] == RIVAL + name]
    return min(ratios(seconds, measured[name].seconds)[1] for seconds in rivals)


def _promises(rows: Mapping[str, Row], speed_ups: Mapping[str, float], device: str) -> Iterable[Promise]:
    on_cpu = device == "cpu"
    for name in OURS:
        for row, bound in ((rows.get(name), 2.0), (rows.get(name + SPIKING), 3.5)):
            if row is not None:
                yield Promise(f"{row.name}: ratio to AdamW fused", row.to_fused[1], bound if on_cpu else 1.3)
                yield Promise(f"{row.name}: bytes a parameter of state", row.state, _FULL_STATE)
                if on_cpu:
                    yield Promise(f"{row.name}: extra bytes a parameter", row.extra, 0.2)
        if on_cpu and name in speed_ups:
            yield Promise(f"{name}: times faster than {RIVAL}{name}", speed_ups[name], 3.0, at_least=True)
