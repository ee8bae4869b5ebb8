# SPDX-License-Identifier: Apache-2.0
"""The same relative decrease in every step."""

from lightning_stable.schedules.arguments import require_within
from lightning_stable.schedules.profile import Profile, progress


class Exponential(Profile):
    """Decays the learning rate by the same ratio in every step.

        factor = final_ratio ^ (done / length)

    Paper: none; torch's `ExponentialLR` with gamma = final_ratio ^ (1 / length), so that the end does not depend on how
    long the run is.

    Deviations: none.

    Args:
        final_ratio: The factor at the end, in (0, 1). Default: two orders of magnitude.

    Raises:
        ValueError: If `final_ratio` is out of its bounds.

    Example:
        >>> [round(Exponential(final_ratio=0.0625).factor(done, 4), 4) for done in range(5)]
        [1.0, 0.5, 0.25, 0.125, 0.0625]
    """

    def __init__(self, final_ratio: float = 0.01) -> None:
        self.final_ratio = require_within("Exponential", "final_ratio", final_ratio, "(0, 1)")

    def factor(self, done: float, length: float) -> float:
        """The power at `done` of `length`."""
        return self.final_ratio ** progress(done, length)
