# SPDX-License-Identifier: Apache-2.0
"""What the pictures have in common: how they are saved, and what is said where they cannot be."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lightning_stable.studies.table import printable

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

TEXT, FAINT_TEXT, CURVE, NOT_FINITE = "#14213d", "#555b66", "#1d4e89", "#d62839"


def save_picture(figure: "Figure", out: Path) -> None:
    """Save a figure as a PNG, which is either whole or not there.

    Args:
        figure: What was drawn.
        out: The PNG file.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from matplotlib.figure import Figure
        >>> with TemporaryDirectory() as folder:
        ...     save_picture(Figure(), Path(folder, "a.png"))
        ...     [path.name for path in Path(folder).iterdir()]
        ['a.png']
    """
    unfinished = out.with_name(f".{out.name}.{os.getpid()}")
    try:
        figure.savefig(unfinished, format="png")
        unfinished.replace(out)
    finally:
        unfinished.unlink(missing_ok=True)


def label(text: str) -> str:
    r"""The text as matplotlib is to show it: a dollar sign would begin a formula.

    Args:
        text: Out of a file that anybody may have written.

    Example:
        >>> print(label("loss in $"))
        loss in \$
    """
    return printable(text).replace("$", r"\$")


def style_axes(axes: "Axes") -> None:
    """Faint lines, no box.

    Args:
        axes: One panel.

    Example:
        >>> from matplotlib.figure import Figure
        >>> axes = Figure().subplots()
        >>> style_axes(axes)
        >>> axes.spines["top"].get_visible()
        False
    """
    axes.grid(axis="y", color="#e9ecef", lw=0.8)
    axes.set_axisbelow(True)
    axes.tick_params(which="both", colors=FAINT_TEXT, labelsize=9)
    axes.spines[["top", "right"]].set_visible(False)
    axes.spines[["left", "bottom"]].set_color("#ced4da")


def try_to_draw(program: str, out: Path, draw: Callable[[], None]) -> int:
    """Draw and say where, or say what is missing; the exit status is 2 if the file cannot be written.

    Args:
        program: Who says it.
        out: The PNG file that is drawn.
        draw: Draws it; what needs matplotlib is imported there.

    Example:
        >>> try_to_draw("lightning-stable report", Path("report.png"), lambda: None)
        Picture: report.png
        0
    """
    try:
        draw()
    except ModuleNotFoundError as error:
        if (error.name or "").partition(".")[0] != "matplotlib":
            raise
        print("No picture: it needs matplotlib. pip install 'lightning-stable[recipes]'", file=sys.stderr)
        return 0
    except OSError as error:
        print(f"{program}: cannot write {out}: {error.strerror}. Choose another place with `--out`.", file=sys.stderr)
        return 2
    print(f"Picture: {out}")
    return 0
