# SPDX-License-Identifier: Apache-2.0
"""The reflected-exponential profile."""

from lightning_stable.functional.rex import rex
from lightning_stable.schedules.arguments import require_within
from lightning_stable.schedules.profile import Profile, progress


class REX(Profile):
    """Holds the learning rate high for longer than cosine or linear decay do, then drops it steeply.

        factor = z / ((1 - beta) + beta * z),    z = 1 - done / length, not below 0

    Paper: Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training with an Improved Schedule" (MLSys 2022).

    Deviations: the paper has beta = 0.5 alone; 0.9 is what its authors' later code uses. Their code starts over after
    the end, this stays at 0.

    Args:
        beta: How long the plateau is, in (0, 1]; 1 is a constant rate that drops to 0 at the end. Default: the paper's.

    Raises:
        ValueError: If `beta` is out of its bounds.

    Example:
        >>> [round(REX().factor(done, 4), 3) for done in range(5)]
        [1.0, 0.857, 0.667, 0.4, 0.0]
    """

    def __init__(self, beta: float = 0.5) -> None:
        self.beta = require_within("REX", "beta", beta, "(0, 1]")

    def factor(self, done: float, length: float) -> float:
        """The curve at `done` of `length`."""
        return rex(progress(done, length), self.beta)
