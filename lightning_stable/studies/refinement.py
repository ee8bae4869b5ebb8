# SPDX-License-Identifier: Apache-2.0
"""`lightning-stable refine`: from the gradient norms of a pilot run to the schedule of the next one."""

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_stable.schedules.arguments import is_number
from lightning_stable.schedules.refine import interpolated, refine, save_schedule
from lightning_stable.studies.event_files import DamagedEvents, read_event_scalars
from lightning_stable.studies.pictures import CURVE, FAINT_TEXT, TEXT, save_picture, style_axes, try_to_draw
from lightning_stable.studies.table import plain_table, printable

_PROGRAM = "lightning-stable refine"
_RECORDED = "gradient_norms.json"  # by `GradientNormRecorder`
_LOGGED = "stability/grad_norm"  # by `GradientNormMonitor` and `SpikeGuard`: l2
_OUT = "refined_schedule.json"


class NoNorms(ValueError):
    """A folder in which nobody has recorded gradient norms.

    Example:
        >>> str(NoNorms("nothing here"))
        'nothing here'
    """


class PilotNorms(NamedTuple):
    """The gradient norms of a run.

    Args:
        values: In the order of the steps, at equal distances.
        norm: `l2` or `l1`.
        source: The file or tag they come from.

    Example:
        >>> PilotNorms([2.0, 1.0], "l2", "stability/grad_norm").norm
        'l2'
    """

    values: list[float]
    norm: str
    source: str


def main(argv: Sequence[str] | None = None) -> int:
    """Make the schedule of a run's norms, print and draw it; the exit status is 2 if there are none.

    Args:
        argv: Options; None takes those of the process.

    Example:
        >>> main(["no/such/run"])
        2
    """
    options = _parser().parse_args(argv)
    out = options.out or options.run_dir / _OUT
    try:
        norms = read_norms(options.run_dir)
        schedule = refine(norms.values, options.norm or norms.norm, options.filter_width)
        save_schedule(out, schedule, options.norm or norms.norm)
    except (NoNorms, ValueError) as error:
        print(f"{_PROGRAM}: {printable(str(error))}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"{_PROGRAM}: cannot write {out}: {error.strerror}. Choose another place with `--out`.", file=sys.stderr)
        return 2
    print(_table(norms, schedule))
    if norms.source.startswith(_LOGGED):
        print("These norms are l2, which is right for SGD. Adam wants l1: record them with GradientNormRecorder.")
    print(f"Schedule: {out}")
    picture = out.with_suffix(".png")
    status = try_to_draw(_PROGRAM, picture, lambda: draw(norms, schedule, picture))
    profile = "--lr_scheduler=ProfileLR --lr_scheduler.profile=Refined --lr_scheduler.profile.path"
    print(f"Use it:   lightning-stable fit --recipe NAME {profile}={out} --lr_scheduler.warmup_steps=0")
    return status


def read_norms(run_dir: Path) -> PilotNorms:
    """What `GradientNormRecorder` has written in a run's folder, or else the norms in TensorBoard's files.

    Args:
        run_dir: The logger's folder.

    Raises:
        NoNorms: If there is neither, or it cannot be understood.

    Example:
        >>> read_norms(Path("no/such/run"))
        Traceback (most recent call last):
            ...
        lightning_stable.studies.refinement.NoNorms: no/such/run: no such folder.
    """
    if not run_dir.is_dir():
        raise NoNorms(f"{run_dir}: no such folder.")
    recorded = run_dir / _RECORDED
    if recorded.is_file():
        return _recorded_norms(recorded)
    try:
        logged = read_event_scalars(run_dir).get(_LOGGED, [])
    except DamagedEvents as error:
        raise NoNorms(str(error)) from error
    if not logged:
        raise NoNorms(
            f"{run_dir} has no {_RECORDED}, and no {_LOGGED} in TensorBoard's files. Run once with "
            "`--trainer.callbacks+=GradientNormRecorder`."
        )
    return PilotNorms([each.value for each in logged], "l2", f"{_LOGGED} in {run_dir}")


def _recorded_norms(path: Path) -> PilotNorms:
    try:
        content: Any = json.loads(path.read_text(encoding="utf-8"))
        values: Any = content["gradient_norms"]
        norm = content["norm"]
    except (OSError, ValueError, RecursionError, KeyError, TypeError) as error:
        raise NoNorms(f"{path} cannot be read: {type(error).__name__}: {error}.") from error
    if norm not in ("l2", "l1") or not isinstance(values, list) or not all(map(is_number, values)):
        raise NoNorms(f"{path} must hold `gradient_norms`, a list of numbers, and their `norm`, `l2` or `l1`.")
    return PilotNorms(values, norm, str(path))


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description="The learning-rate schedule that is optimal for the gradient norms of a run (Defazio et al. 2023). "
        "Record them with the callback GradientNormRecorder in a run with linear decay.",
    )
    parser.add_argument("run_dir", type=Path, metavar="RUN_DIR", help="the logger's folder: runs/NAME/version_N")
    parser.add_argument("--norm", choices=("l2", "l1"), help="what the norms are; by default what they were saved as")
    parser.add_argument(
        "--filter-width", type=float, default=0.1, metavar="SHARE", help="median filter, as a share of the run; 0.1"
    )
    parser.add_argument("--out", type=Path, metavar="FILE.json", help=f"where the schedule goes; RUN_DIR/{_OUT}")
    return parser


def _table(norms: PilotNorms, schedule: Tensor) -> str:
    rows = []
    for tenth in range(11):
        share = tenth / 10
        place = min(int(share * len(norms.values)), len(norms.values) - 1)
        factor = interpolated(schedule.tolist(), share)
        rows.append([f"{share:.0%}", f"{norms.values[place]:.4g}", f"{factor:.3f}", f"{1 - share:.3f}"])
    return plain_table(
        f"Schedule of {len(norms.values)} {norms.norm} norms: {norms.source}",
        ["of the run", f"{norms.norm} norm", "refined", "linear"],
        rows,
    )


def draw(norms: PilotNorms, schedule: Tensor, out: Path) -> None:
    """Draw norms and schedule into the PNG `out`.

    Args:
        norms: Of the pilot run.
        schedule: Made of them.
        out: The PNG file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     draw(PilotNorms([2.0, 1.0], "l2", "x"), refine([2.0, 1.0]), Path(folder, "a.png"))
        ...     [path.name for path in Path(folder).iterdir()]
        ['a.png']
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(10, 6), dpi=100, facecolor="white", layout="constrained")
    above, below = figure.subplots(2, 1, sharex=True, height_ratios=(1, 1.3))
    above.plot(torch.linspace(0, 100, len(norms.values)), norms.values, color=CURVE, lw=0.9)
    above.set_yscale("log")
    above.set_ylabel(f"{norms.norm} norm of the gradient", color=FAINT_TEXT)
    below.plot(torch.linspace(0, 100, len(schedule)), schedule, color=CURVE, lw=2, label="refined")
    below.plot([0, 100], [1, 0], color="#a3abb5", lw=1.2, ls="--", label="linear")
    below.set_ylabel("factor on the learning rate", color=FAINT_TEXT)
    below.set_xlabel("of the run, in %", color=FAINT_TEXT)
    below.set_ylim(0, 1.05)
    below.set_xlim(0, 100)
    below.legend(frameon=False)
    for axes in (above, below):
        style_axes(axes)
    figure.suptitle("The schedule that the gradient norms ask for", color=TEXT, fontsize=13)
    save_picture(figure, out)
