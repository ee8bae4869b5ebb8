# SPDX-License-Identifier: Apache-2.0
"""A power of what is left to do."""

from lightning_stable.schedules.arguments import require_positive
from lightning_stable.schedules.profile import Profile, progress


class Polynomial(Profile):
    """Decays the learning rate as a power of what is left.

        factor = (1 - done / length) ^ power

    Paper: none; the field's custom, for example Chen et al., "Rethinking Atrous Convolution for Semantic Image
    Segmentation" (2017) with a power of 0.9, and Nado et al. (2021) with 2.

    Deviations: none.

    Args:
        power: Above 0; 1 is the straight line. Default: that of Nado et al.

    Raises:
        ValueError: If `power` is not above 0.

    Example:
        >>> [Polynomial(power=2).factor(done, 4) for done in range(5)]
        [1.0, 0.5625, 0.25, 0.0625, 0.0]
    """

    def __init__(self, power: float = 2.0) -> None:
        self.power = require_positive("Polynomial", "power", power)

    def factor(self, done: float, length: float) -> float:
        """The power at `done` of `length`."""
        return (1.0 - progress(done, length)) ** self.power
