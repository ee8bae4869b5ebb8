# SPDX-License-Identifier: Apache-2.0
"""One line that says how far a long computation is, and nothing if it is short."""

import time
from collections.abc import Callable
from typing import TextIO

_FIRST, _NEXT = 2.0, 0.2  # seconds until something is said in a terminal, and between two times
_ON_PAPER = 10.0  # both of them where lines stay


class ProgressLine:
    r"""Says how far something is, on a line that is written over in a terminal.

    Args:
        stream: Where to.
        clock: Seconds, from any beginning.

    Example:
        >>> import io
        >>> seconds = iter([0.0, 1.0, 11.0])
        >>> line = ProgressLine(io.StringIO(), lambda: next(seconds))
        >>> line("scanning", 0.1)
        >>> line("scanning", 0.3)
        >>> line.stream.getvalue()
        'scanning:  30 %\n'
    """

    def __init__(self, stream: TextIO, clock: Callable[[], float] = time.monotonic) -> None:
        self.stream = stream
        self._clock = clock
        self._terminal = stream.isatty()
        self._due = clock() + (_FIRST if self._terminal else _ON_PAPER)
        self._width = 0

    def __call__(self, what: str, share: float) -> None:
        """Say that so much of it is done, if it is time to."""
        now = self._clock()
        if now < self._due:
            return
        self._due = now + (_NEXT if self._terminal else _ON_PAPER)
        text = f"{what}: {share:4.0%}".replace("%", " %")
        if self._terminal:
            self.stream.write(f"\r{text:<{self._width}}")
            self._width = len(text)
        else:
            self.stream.write(f"{text}\n")
        self.stream.flush()

    def clear(self) -> None:
        """Leave a terminal's line empty for what comes next."""
        if self._width:
            self.stream.write(f"\r{'':<{self._width}}\r")
            self.stream.flush()
            self._width = 0
