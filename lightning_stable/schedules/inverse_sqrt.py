# SPDX-License-Identifier: Apache-2.0
"""One over the square root of the steps: a decay that needs no end."""

import math
from typing import ClassVar

from lightning_stable.schedules.arguments import require_positive
from lightning_stable.schedules.profile import Profile


class InverseSqrt(Profile):
    """Decays the learning rate with one over the square root of the steps, in a run of any length.

        factor = sqrt(timescale / (timescale + done))

    Paper: Vaswani et al., "Attention Is All You Need" (2017), where the timescale is the length of the warmup; Raffel
    et al. (T5, 2020), 10,000 steps.

    Deviations: none; with `timescale` = `warmup_steps` = w it is sqrt(w / s) at step s, as in the first paper.

    Args:
        timescale: After so much, in the schedule's unit, the rate has come down to 0.71. Default: that of T5.

    Raises:
        ValueError: If `timescale` is not above 0.

    Example:
        >>> [InverseSqrt(timescale=100).factor(done, float("inf")) for done in (0, 300, 9900)]
        [1.0, 0.5, 0.1]
    """

    needs_length: ClassVar[bool] = False

    def __init__(self, timescale: float = 10_000) -> None:
        self.timescale = require_positive("InverseSqrt", "timescale", timescale)

    def factor(self, done: float, length: float) -> float:
        """The factor at `done`; `length` does not matter."""
        return math.sqrt(self.timescale / (self.timescale + done))
