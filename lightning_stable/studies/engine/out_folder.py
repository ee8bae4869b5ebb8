# SPDX-License-Identifier: Apache-2.0
"""The folder of `--out`: it can be written to, and holds nothing that another command has made."""

import re
import tempfile
from collections.abc import Sequence
from pathlib import Path

from lightning_stable.studies.engine.report import TABLE
from lightning_stable.studies.engine.study import Study

_MADE_BY = re.compile(r"Made by `(lightning-stable study [^`\n]*)`\.")
_SEEDS = re.compile(r"--seeds (\d+(?:,\d+)*)")


class OutRefused(ValueError):
    """A folder that a study cannot have.

    Example:
        >>> str(OutRefused("`--out` must be a folder"))
        '`--out` must be a folder'
    """


def make_folder(folder: Path) -> None:
    """Make the folder if it is not there, and see that it can be written to.

    Args:
        folder: Of `--out`.

    Raises:
        OutRefused: If it cannot.

    Example:
        >>> make_folder(Path("/dev/null/runs"))
        Traceback (most recent call last):
            ...
        lightning_stable...OutRefused: `--out` must be a folder, or a new one: /dev/null/runs is a file, or lies in one
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return
    except (FileExistsError, NotADirectoryError) as error:
        raise OutRefused(f"`--out` must be a folder, or a new one: {folder} is a file, or lies in one") from error
    except OSError as error:
        raise OutRefused(f"`--out` must be a folder that can be written to: {folder}: {error.strerror}") from error


def require_own(folder: Path, study: Study, quick: bool, seeds: Sequence[int]) -> None:
    """Refuse a folder whose table would be replaced by one of another study, or of other or fewer runs.

    Args:
        folder: Of `--out`.
        study: Which one is to be made.
        quick: Whether it is the smoke version.
        seeds: Of its runs; more than before are welcome.

    Raises:
        OutRefused: If what is there would be lost.

    Example:
        >>> require_own(Path("nowhere"), study=None, quick=False, seeds=(0, 1, 2))
    """
    try:
        text = (folder / TABLE).read_text(encoding="utf-8", errors="replace")
    except FileNotFoundError:
        return
    except OSError as error:
        raise OutRefused(f"`--out` must be a folder that can be read: {folder / TABLE}: {error.strerror}") from error
    found = _MADE_BY.search(text)
    command = found[1] if found else ""
    if text.startswith(f"# Study `{study.name}`\n") and _is_part(command, study, quick, seeds):
        return
    raise OutRefused(
        f"`--out` must be a folder without a table, or with that of the same study and arguments, or of fewer seeds:"
        f" {folder / TABLE} is of {f'`{command}`' if command else 'something else'}. Choose another `--out`"
    )


def _is_part(command: str, study: Study, quick: bool, seeds: Sequence[int]) -> bool:
    """Whether all that `command` has made is made now, too."""
    if command.split()[2:3] != [study.name] or ("--quick" in command.split()) != quick:
        return False
    given = _SEEDS.search(command)
    before = map(int, given[1].split(",")) if given else study.quick_seeds if quick else study.seeds
    return set(before) <= set(seeds)
