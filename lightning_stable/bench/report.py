# SPDX-License-Identifier: Apache-2.0
"""What the benchmarks have in common around their tables: the arguments, and where the numbers are from and go to."""

import argparse
import json
import platform
import sys
from pathlib import Path
from typing import Any

import lightning
import torch


def machine(threads: int, device: torch.device | None = None) -> str:
    """Say on what is measured.

    Args:
        threads: Of torch.
        device: Named if it is an accelerator.

    Example:
        >>> machine(2).endswith("2 CPU threads")
        True
    """
    versions = f"Python {platform.python_version()}, torch {torch.__version__}, lightning {lightning.__version__}"
    accelerator = f", {torch.cuda.get_device_name()}" if device is not None and device.type == "cuda" else ""
    return f"{versions}, {threads} CPU thread{'s' * (threads > 1)}{accelerator}"


def at_least_one(text: str) -> int:
    """Read a whole number from the command line.

    Args:
        text: As it was typed.

    Raises:
        argparse.ArgumentTypeError: If it is none, or less than 1.

    Example:
        >>> at_least_one("12")
        12
    """
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text}")
    return int(text)


def new_file(text: str) -> Path:
    """Read the name of a file to be written from the command line, before hours are spent on what is to be in it.

    Args:
        text: As it was typed.

    Raises:
        argparse.ArgumentTypeError: If it is a folder, or in one that is not there.

    Example:
        >>> new_file("numbers.json").name
        'numbers.json'
    """
    path = Path(text)
    if path.is_dir() or not path.parent.is_dir():
        raise argparse.ArgumentTypeError(f"must be a file in a folder that exists, got {text}")
    return path


def show_progress(doing: str | None) -> None:
    """Show on a terminal what is being measured; nothing where the output goes to a file.

    Args:
        doing: In a few words; `None` to wipe it away.

    Example:
        >>> show_progress(None)
    """
    if sys.stderr.isatty():
        sys.stderr.write(f"\r{doing or '':<70}" + "\r" * (doing is None))
        sys.stderr.flush()


def write_json(path: Path, content: dict[str, Any]) -> None:
    """Write a file that is either whole or not there.

    Args:
        path: Of the file.
        content: What is to be in it.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     write_json(Path(folder) / "numbers.json", {"seconds": 3})
        ...     (Path(folder) / "numbers.json").read_text().split()
        ['{', '"seconds":', '3', '}']
    """
    temporary = path.with_name(f".{path.name}.part")
    temporary.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
    temporary.replace(path)
