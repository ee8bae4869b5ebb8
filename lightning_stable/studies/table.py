# SPDX-License-Identifier: Apache-2.0
"""Print a table, with rich where it is installed and as plain text elsewhere."""

from collections.abc import Sequence


def print_table(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> None:
    """Print `rows` under `titles`.

    Args:
        title: What stands above the table.
        titles: One per column.
        rows: As many cells as there are titles.

    Example:
        >>> print_table("Runs", ["name", "loss"], [["a", "2.5"]])  # doctest: +SKIP
    """
    try:
        from rich.box import SIMPLE_HEAD
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        print(plain_table(title, titles, rows))
        return
    table = Table(title=title, title_justify="left", title_style="bold", box=SIMPLE_HEAD, pad_edge=False)
    for name in titles:
        table.add_column(name, overflow="fold")
    for row in rows:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def plain_table(title: str, titles: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """The table as lines of plain text.

    Args:
        title: What stands above the table.
        titles: One per column.
        rows: As many cells as there are titles.

    Example:
        >>> print(plain_table("Runs", ["name", "loss"], [["a", "2.5"], ["bb", "10"]]))
        Runs
        name  loss
        ----  ----
        a     2.5
        bb    10
        <BLANKLINE>
    """
    widths = [max(len(row[column]) for row in [titles, *rows]) for column in range(len(titles))]
    lines = [titles, ["-" * width for width in widths], *rows]
    aligned = ["  ".join(f"{cell:<{width}}" for cell, width in zip(line, widths, strict=True)) for line in lines]
    return "\n".join([title, *(line.rstrip() for line in aligned), ""])
