# SPDX-License-Identifier: Apache-2.0
"""The parser of the command line: what is wrong, in one line, instead of jsonargparse's account of all it tried."""

import os
import re
import sys
from typing import NoReturn

from lightning.pytorch.cli import LightningArgumentParser

_ACCOUNT = (  # jsonargparse on the types that it tried and on values as it holds them
    "Does not validate against any of the Union subtypes",
    "Subtypes:",
    "Errors:",
    "Expected a <class 'NoneType'>",
    "Expected a path but",
    "Given value",
    "Not a valid subclass of",
    "Subclass types expect one of:",
    "a class path (str)",
    "a dict ",
    "Problem with given class_path",
)
_KEY = re.compile(r'Parser key "(?P<key>[^"]*)":\s*')
_CLASS = re.compile(r"Expected a dot import path string: (?P<name>.*)")
_TYPE = re.compile(r"Expected an? (?:<class '(?P<type>[^']*)'>|(?P<other>.*))\. Got value: (?P<value>.*)")


class ShortErrorParser(LightningArgumentParser):
    """LightningArgumentParser whose errors fit into a terminal; `JSONARGPARSE_DEBUG=true` shows them whole.

    Args:
        *args: As for `LightningArgumentParser`.
        **kwargs: As for `LightningArgumentParser`.

    Example:
        >>> issubclass(ShortErrorParser, LightningArgumentParser)
        True
    """

    def error(self, message: str, ex: Exception | None = None) -> NoReturn:
        """Say what is wrong and end with exit status 2."""
        if not self.exit_on_error or os.environ.get("JSONARGPARSE_DEBUG", "").lower() == "true":
            super().error(message, ex)
        parser = getattr(ex, "subcommand_parser", None) or self
        program = parser.prog.replace(" [options]", "")
        sys.stderr.write(f"{program}: {readable(message)}\n")
        if " " in program:  # what comes before the subcommand has no options of its own to speak of
            sys.stderr.write(f"All options: {program} --help\n")
        sys.exit(2)


def readable(message: str) -> str:
    """What is wrong, out of what jsonargparse says of it.

    The words of our own classes alone, which begin with the call in backticks, where there are any; else the reasons,
    without the types that were tried; else the message as it is.

    Args:
        message: As jsonargparse has it, possibly of many lines.

    Example:
        >>> print(readable('''Does not validate against any of the Union subtypes
        ... Errors:
        ...   - `SpikeGuard(snapshot_every=...)` must be at least 1, got 0.
        ...   - Expected a <class 'NoneType'>'''))
        `SpikeGuard(snapshot_every=...)` must be at least 1, got 0.
        >>> print(readable('''Parser key "model":
        ...   Parser key "lr":
        ...     Expected a <class 'float'>. Got value: x'''))
        --model.lr must be float, got 'x'.
    """
    keys: list[str] = []
    reasons: dict[str, None] = {}  # in order, each once
    for line in message.splitlines():
        text = line.strip().removeprefix("- ")
        if match := _KEY.match(text):
            keys.append(match["key"])
            text = text[match.end() :]
        if text and not text.startswith(_ACCOUNT):
            reasons[_reason(text, ".".join(keys))] = None
    own = [reason for reason in reasons if reason.startswith("`")]
    return "\n".join(own or reasons) or message


def _reason(text: str, key: str) -> str:
    option = f"--{key}" if key else ""
    if match := _CLASS.match(text):
        return (
            f"{option}: there is no class {match['name']!r}; `lightning-stable techniques` lists those of this package."
        )
    if match := _TYPE.match(text):
        return f"{option} must be {match['type'] or match['other']}, got {match['value']!r}."
    return text if not option or text.startswith("`") else f"{option}: {text}"
