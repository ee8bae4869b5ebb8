# SPDX-License-Identifier: Apache-2.0
"""Half a cosine wave down to zero."""

import math

from lightning_stable.schedules.profile import Profile, progress


class Cosine(Profile):
    """Decays the learning rate along half a cosine wave.

        factor = (1 + cos(pi * done / length)) / 2

    Paper: Loshchilov and Hutter, "SGDR: Stochastic Gradient Descent with Warm Restarts" (ICLR 2017), without restarts.

    Deviations: after the end the rate stays where it is; torch's `CosineAnnealingLR` comes back up.

    Example:
        >>> [round(Cosine().factor(done, 4), 3) for done in range(5)]
        [1.0, 0.854, 0.5, 0.146, 0.0]
    """

    def factor(self, done: float, length: float) -> float:
        """The wave at `done` of `length`."""
        return (1.0 + math.cos(math.pi * progress(done, length))) / 2.0
