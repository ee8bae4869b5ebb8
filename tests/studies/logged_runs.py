# SPDX-License-Identifier: Apache-2.0
"""Small run folders as a CSVLogger and the guard leave them."""

import json
import math
import struct
from pathlib import Path

from lightning_stable.guard import Incident


def incident(step, response="SkipStep", **fields):
    """An incident at `step`, with the fields that matter to a report."""
    given = {"global_step": step, "epoch": 0, "batches": [step], "signal": "loss", "value": math.nan, "threshold": 2.5}
    return Incident(**{"step": step, "response": response, "seconds_lost": 0.25, "steps_skipped": 1, **given, **fields})


def write_csv(folder: Path, scalars, incidents=(), torn=""):
    """Write `metrics.csv` from {tag: {step: value}} and, if there are any, `incidents.jsonl`."""
    folder.mkdir(parents=True, exist_ok=True)
    steps = sorted({step for points in scalars.values() for step in points})
    rows = [[str(step), *(str(points.get(step, "")) for points in scalars.values())] for step in steps]
    lines = [",".join(row) for row in [["step", *scalars], *rows]]
    (folder / "metrics.csv").write_text("\n".join(lines) + "\n")
    if incidents or torn:
        written = "".join(json.dumps(one.to_json()) + "\n" for one in incidents)
        (folder / "incidents.jsonl").write_text(written + torn)
    return folder


def falling(steps):
    """A loss that falls."""
    return {step: 1.0 + 4.0 / (1 + step) for step in range(steps)}


def png_size(path: Path):
    """Width and height, out of the header of a PNG."""
    head = path.read_bytes()[:24]
    assert head.startswith(b"\x89PNG")
    return struct.unpack(">II", head[16:24])
