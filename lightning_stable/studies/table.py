# SPDX-License-Identifier: Apache-2.0
"""Tables as plain text: the same in a terminal, in a pipe and in a file, and no name is ever broken in two."""

from collections.abc import Sequence


def plain_table(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as lines of plain text, numbers to the right.

    Args:
        title: What stands above the table.
        titles: One per column.
        rows: As many cells as there are titles.

    Example:
        >>> print(plain_table("Runs", ["name", "loss"], [["a", "2.5"], ["bb", "10"]]))
        Runs
        <BLANKLINE>
        name  loss
        ----  ----
        a      2.5
        bb      10
        <BLANKLINE>
    """
    rows = [[printable(cell) for cell in row] for row in rows]
    columns = [list(column) for column in zip(titles, *rows, strict=True)]
    widths = [max(map(len, column)) for column in columns]
    signs = [">" if all(map(_is_number, column[1:])) else "<" for column in columns]
    lines = [titles, ["-" * width for width in widths], *rows]
    aligned = [
        "  ".join(f"{cell:{sign}{width}}" for cell, sign, width in zip(line, signs, widths, strict=True))
        for line in lines
    ]
    return "\n".join([title, "", *(line.rstrip() for line in aligned), ""])


def printable(text: str) -> str:
    r"""The text with whatever a terminal would obey in place of showing it, such as colours, spelled out.

    Args:
        text: Out of a file that anybody may have written.

    Example:
        >>> print(printable("loss"), printable("\x1b[31mred"))
        loss \x1b[31mred
    """
    return text if text.isprintable() else repr(text)[1:-1]


def _is_number(cell: str) -> bool:
    try:
        float(cell.replace("-", "") or 0)  # a span of batches, 4-7, is one too
    except ValueError:
        return False
    return True
