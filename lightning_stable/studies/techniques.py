# SPDX-License-Identifier: Apache-2.0
"""`lightning-stable techniques`: every public class and function of the rooms, with one line on each."""

import argparse
import inspect
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from pkgutil import iter_modules

import lightning_stable

BEGIN = "<!-- techniques:start -->"
END = "<!-- techniques:end -->"
_NOT_ROOMS = ("bench", "cli", "files", "studies")


@dataclass(frozen=True)
class Technique:
    """One public name of a room.

    Args:
        name: The class or function.
        room: Where it is imported from.
        line: The first sentence of its docstring.

    Example:
        >>> Technique("ProfileLR", "schedules", "A schedule.").room
        'schedules'
    """

    name: str
    room: str
    line: str


def list_techniques() -> list[Technique]:
    """All public classes and functions, room by room.

    Example:
        >>> "SpikeGuard" in [technique.name for technique in list_techniques()]
        True
    """
    rooms = [module.name for module in iter_modules(lightning_stable.__path__)]  # parameters.py is one too
    return [
        Technique(name, room, _first_sentence(value))
        for room in sorted(rooms)
        if not room.startswith("_") and room not in _NOT_ROOMS
        for name, value in sorted(vars(import_module(f"lightning_stable.{room}")).items())
        if not name.startswith("_") and (inspect.isclass(value) or inspect.isfunction(value))
        if value.__module__.startswith(f"lightning_stable.{room}")
    ]


def techniques_table() -> str:
    """The techniques as a Markdown table.

    Example:
        >>> techniques_table().splitlines()[0]
        '| name | room | what it does |'
    """
    rows = [f"| `{one.name}` | `{one.room}` | {one.line} |" for one in list_techniques()]
    return "\n".join(["| name | room | what it does |", "| --- | --- | --- |", *rows])


def write_table(readme: Path) -> bool:
    r"""Put the table between the two markers of `readme`; say whether that changed it.

    Args:
        readme: A Markdown file with the two marker lines.

    Raises:
        ValueError: If the markers are not there, or in the wrong order.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     readme = Path(folder, "README.md")
        ...     _ = readme.write_text("\\n".join(["# Title", BEGIN, END, ""]))
        ...     write_table(readme), write_table(readme)
        (True, False)
    """
    text = readme.read_text(encoding="utf-8")
    before, begin, rest = text.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"{readme} needs the two lines {BEGIN} and {END}, in this order.")
    new = f"{before}{BEGIN}\n{techniques_table()}\n{END}{after}"
    if new == text:
        return False
    unfinished = readme.with_name(f".{readme.name}.part")
    unfinished.write_text(new, encoding="utf-8")
    unfinished.replace(readme)
    return True


def main(argv: Sequence[str] | None = None) -> int:
    """Print the table, or write it into a file.

    Args:
        argv: Options; None takes those of the process.

    Example:
        >>> main(["--write", "no/such/README.md"])
        2
    """
    parser = argparse.ArgumentParser(
        prog="lightning-stable techniques", description="Every public class and function, with one line on each."
    )
    parser.add_argument("--write", type=Path, metavar="README.md", help="replace the table between the markers there")
    options = parser.parse_args(argv)
    if options.write is None:
        print(techniques_table())
        return 0
    try:
        changed = write_table(options.write)
    except (OSError, ValueError) as error:
        print(f"lightning-stable techniques: {error}", file=sys.stderr)
        return 2
    print(f"{options.write}: the table is {'rewritten' if changed else 'current'}.")
    return 0


def _first_sentence(value: object) -> str:
    paragraph = " ".join((inspect.getdoc(value) or "").partition("\n\n")[0].split())
    sentence, stop, _ = paragraph.partition(". ")
    return (sentence + stop.strip()).replace("|", "\\|")
