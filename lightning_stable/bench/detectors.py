# SPDX-License-Identifier: Apache-2.0
"""What the detectors find in labelled curves, and how often they are wrong."""

import argparse
import copy
from dataclasses import asdict
from pathlib import Path

from lightning_stable.bench.detector_table import Row, goals, pair_table, table
from lightning_stable.bench.labelled_curves import Curve, generate_curves, read_curves
from lightning_stable.bench.report import at_least_one, new_file, show_progress, write_json
from lightning_stable.detectors import (
    AnyOf,
    Detector,
    EMAZScore,
    LevelShift,
    MedianDeviation,
    MultipleOfMean,
    NonFinite,
    Ratio,
    ZScore,
)

_FLOOR = 0.15  # nats

POINT_RULES: dict[str, Detector] = {
    "MedianDeviation": MedianDeviation(min_rise=_FLOOR),
    "MedianDeviation, threshold 8": MedianDeviation(threshold=8.0, min_rise=_FLOOR),
    "MedianDeviation, window 128": MedianDeviation(window=128, warmup=64, min_rise=_FLOOR),
    "ZScore (OLMo's rule)": ZScore(),
    "ZScore, threshold 12": ZScore(threshold=12.0, min_rise=_FLOOR),
    "EMAZScore": EMAZScore(min_rise=_FLOOR),
    "Ratio (Lightning's rule)": Ratio(),
    "Ratio, 1.25 times": Ratio(ratio=1.25, min_rise=_FLOOR),
    "MultipleOfMean (KillLossSpike)": MultipleOfMean(),
    "NonFinite": NonFinite(),
}
SLOW_RULES: dict[str, Detector] = {
    "LevelShift": LevelShift(),
    "LevelShift, from 0.18 nats": LevelShift(min_rise=0.18),
}
DEFAULT_PAIR = "AnyOf: MedianDeviation, LevelShift"


def main(argv: list[str] | None = None) -> int:
    """Measure, print the tables, and return 0 whatever they say: a benchmark is no test.

    Args:
        argv: `--curves`, `--seed`, `--data`, `--json`; None takes those of the process.

    Example:
        >>> main(["--curves", "0"])
        Traceback (most recent call last):
            ...
        SystemExit: 2
    """
    parser = _parser()
    arguments = parser.parse_args(argv)
    try:
        real = [] if arguments.data is None else read_curves(arguments.data)
    except ValueError as error:
        parser.error(str(error))
    sources = {"generated": list(generate_curves(arguments.curves, arguments.seed)), "real": real}
    rows = measure({name: curves for name, curves in sources.items() if curves})
    steps = {name: sum(len(curve.values) for curve in curves) for name, curves in sources.items() if curves}
    print(
        "\n".join(
            f"{name}: {len(sources[name])} curves of {count / 1e6:.2f} million steps" for name, count in steps.items()
        )
    )
    print(f"\n{table(rows)}\n{pair_table(rows, list(POINT_RULES), list(SLOW_RULES))}\n{goals(rows, DEFAULT_PAIR)}")
    if arguments.json is not None:
        write_json(arguments.json, {row.name: {k: asdict(score) for k, score in row.totals().items()} for row in rows})
    return 0


def measure(sources: dict[str, list[Curve]]) -> list[Row]:
    """Let every detector scan every curve; each curve is a run of its own.

    Args:
        sources: Curves by where they are from.

    Example:
        >>> measure({})[0].name
        'MedianDeviation'
    """
    default = AnyOf([POINT_RULES["MedianDeviation"], SLOW_RULES["LevelShift"]])
    detectors = {**POINT_RULES, **SLOW_RULES, DEFAULT_PAIR: default}
    rows = []
    for name, detector in detectors.items():
        row = Row(name)
        for source, curves in sources.items():
            show_progress(f"{name}: {source}")
            for curve in curves:
                row.add(source, curve, copy.deepcopy(detector).scan(curve.values).is_anomaly)
        rows.append(row)
    show_progress(None)
    return rows


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lightning-stable bench detectors", description=__doc__)
    parser.add_argument(
        "--curves", type=at_least_one, default=180, help="of 50 000 steps, to be generated (default: 180)"
    )
    parser.add_argument("--seed", type=int, default=0, help="of the generated curves (default: 0)")
    parser.add_argument("--data", type=Path, metavar="DIR", help="real curves, NAME.npz, and their labels.json, too")
    parser.add_argument("--json", type=new_file, metavar="FILE", help="write the numbers there, too")
    return parser
