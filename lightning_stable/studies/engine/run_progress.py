# SPDX-License-Identifier: Apache-2.0
"""How many runs of a study there are, how many are done, and about how long the others will take."""

import time
from collections.abc import Callable
from typing import TextIO

from lightning_stable.studies.progress import ProgressLine

_CELLS = 20


class RunProgress:
    r"""A bar over the runs of a study.

    Long runs count for more than short ones, and what others have done in the meantime counts as well.

    Args:
        name: Of the study.
        costs: Of every run, in any unit.
        stream: Where to.
        clock: Seconds, from any beginning.

    Example:
        >>> import io
        >>> seconds = iter([0.0, 0.0, 10.0, 10.0])
        >>> progress = RunProgress("toy", [1.0, 1.0, 2.0], io.StringIO(), lambda: next(seconds))
        >>> progress(done=1, failed=0, cost_done=1.0)
        >>> progress.line.stream.getvalue()
        'toy [#####...............] 1 of 3 runs, about 30 s left:  25 %\n'
    """

    def __init__(
        self, name: str, costs: list[float], stream: TextIO, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._clock = clock
        self.line = ProgressLine(stream, clock)
        self._name = name
        self._runs = len(costs)
        self._cost = sum(costs)
        self._begin = clock()
        self._cost_before: float | None = None

    def begin_at(self, cost_done: float) -> None:
        """What was done before this command began says nothing about how fast it is.

        Args:
            cost_done: Of the runs that are done.
        """
        self._cost_before = cost_done

    def __call__(self, done: int, failed: int, cost_done: float) -> None:
        """Say how far it is, if it is time to.

        Args:
            done: How many runs are complete or failed.
            failed: How many of them failed.
            cost_done: The sum of their costs.
        """
        share = cost_done / self._cost if self._cost else 1.0
        full = int(share * _CELLS)
        bar = "#" * full + "." * (_CELLS - full)
        failures = f", {failed} failed" if failed else ""
        left = self._seconds_left(cost_done)
        estimate = "" if left is None else f", about {_duration(left)} left"
        self.line(f"{self._name} [{bar}] {done} of {self._runs} runs{failures}{estimate}", share)

    def clear(self) -> None:
        """Leave a terminal's line empty for what comes next."""
        self.line.clear()

    def _seconds_left(self, cost_done: float) -> float | None:
        made = cost_done - (self._cost_before or 0.0)
        if made <= 0.0:
            return None
        return (self._clock() - self._begin) * (self._cost - cost_done) / made


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 90 * 60 else f"{seconds / 3600:.1f} h"
