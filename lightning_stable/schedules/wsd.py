# SPDX-License-Identifier: Apache-2.0
"""Warmup, stable, decay."""

import math
from typing import ClassVar, Literal

from lightning_stable.schedules.arguments import require_one_of, require_within
from lightning_stable.schedules.profile import Profile, progress

_DECAYS = ("linear", "1-sqrt")


class WSD(Profile):
    """Keeps the learning rate as it is and decays it in the last part of the run (warmup-stable-decay).

        factor = 1                               while done < (1 - decay_fraction) * length
               = 1 - y         (`linear`)        y: the share of the last part that is done
               = 1 - sqrt(y)   (`1-sqrt`)

    Paper: Hu et al., "MiniCPM: Unveiling the Potential of Small Language Models with Scalable Training Strategies"
    (2024), for the schedule; Hägele et al., "Scaling Laws and Compute-Optimal Training Beyond Fixed Training Durations"
    (NeurIPS 2024), for both decays.

    Deviations: MiniCPM's own decay is exponential; `Exponential` has that curve.

    Without an end the rate stays as it is until `ProfileLR.cooldown` is called: a run whose length nobody knows yet.

    Args:
        decay_fraction: The last part's share of what comes after the warmup, in (0, 1]. Default: Hägele et al. find
            that 20 % do as well as a cosine.
        decay: `linear`, or `1-sqrt`, which Hägele et al. find to be slightly better.

    Raises:
        ValueError: If an argument is out of its bounds.

    Example:
        >>> [round(WSD(decay_fraction=0.5).factor(done, 4), 3) for done in range(5)]
        [1.0, 1.0, 1.0, 0.293, 0.0]
    """

    needs_length: ClassVar[bool] = False

    def __init__(self, decay_fraction: float = 0.2, decay: Literal["linear", "1-sqrt"] = "1-sqrt") -> None:
        self.decay_fraction = require_within("WSD", "decay_fraction", decay_fraction, "(0, 1]")
        self.decay: Literal["linear", "1-sqrt"] = decay
        require_one_of("WSD", "decay", decay, _DECAYS)

    def factor(self, done: float, length: float) -> float:
        """The factor at `done` of `length`."""
        if math.isinf(length):
            return 1.0
        last_part = length * self.decay_fraction
        return decayed(progress(done - (length - last_part), last_part), self.decay)


def decayed(share: float, decay: str) -> float:
    """What is left of the rate when this share of a decay is done.

    Example:
        >>> decayed(0.25, "linear"), decayed(0.25, "1-sqrt")
        (0.75, 0.5)
    """
    return 1.0 - (math.sqrt(share) if decay == "1-sqrt" else share)
