# SPDX-License-Identifier: Apache-2.0
"""Up and down once, with momentum going the other way."""

import math
from itertools import pairwise
from typing import Literal

from lightning_stable.schedules.arguments import is_number, require_one_of, require_within
from lightning_stable.schedules.profile import Profile, progress


class OneCycle(Profile):
    """Raises the learning rate to its base rate and lowers it to almost nothing, while momentum goes down and up again.

        x = done / length;    between two neighbouring corners of these lines along half a cosine, or straight
        rate over base rate:   (0, start_ratio)   (peak, 1)   (1, end_ratio)
        momentum:              (0, highest)       (peak, lowest)   (1, highest)
        with `three_phases`:   back to start_ratio and `highest` at 2 * peak, and from there to end_ratio

    Paper: Smith, "A disciplined approach to neural network hyper-parameters: Part 1" (2018), and Smith and Topin,
    "Super-Convergence" (2018).

    Deviations: defaults are those of torch's `OneCycleLR`: fewer steps up than down, cosines; Smith's own are straight
    lines in three phases. The base rate of each group is the peak, where torch overwrites it by `max_lr`. torch has its
    corners one step earlier, since it counts to `total_steps - 1`.

    Args:
        peak: Where the peak is, as a fraction of the run, in (0, 1); with `three_phases` below 0.5.
        start_ratio: The factor at the beginning, in (0, 1].
        end_ratio: The factor at the end, in [0, 1].
        curve: `cosine` or `linear`.
        three_phases: Up, down by as many steps, and an end below the start.
        momentum_range: Lowest and highest momentum, or Adam's beta1; `None` leaves momentum alone.

    Raises:
        ValueError: If an argument is out of its bounds.

    Example:
        >>> cycle = OneCycle(peak=0.5, start_ratio=0.1, end_ratio=0.0, curve="linear")
        >>> [round(cycle.factor(done, 4), 3) for done in range(5)]
        [0.1, 0.55, 1.0, 0.5, 0.0]
        >>> [round(cycle.momentum(done, 4), 3) for done in range(5)]
        [0.95, 0.9, 0.85, 0.9, 0.95]
    """

    def __init__(
        self,
        peak: float = 0.3,
        start_ratio: float = 0.04,
        end_ratio: float = 4e-6,
        curve: Literal["cosine", "linear"] = "cosine",
        three_phases: bool = False,
        momentum_range: tuple[float, float] | None = (0.85, 0.95),
    ) -> None:
        self.peak = require_within("OneCycle", "peak", peak, "(0, 0.5)" if three_phases else "(0, 1)")
        self.start_ratio = require_within("OneCycle", "start_ratio", start_ratio, "(0, 1]")
        self.end_ratio = require_within("OneCycle", "end_ratio", end_ratio, "[0, 1]")
        self.curve: Literal["cosine", "linear"] = curve
        require_one_of("OneCycle", "curve", curve, ("cosine", "linear"))
        self.three_phases = three_phases
        self.momentum_range = _checked(momentum_range)

    def factor(self, done: float, length: float) -> float:
        """The factor at `done` of `length`."""
        return self._along(progress(done, length), self.start_ratio, 1.0, self.end_ratio)

    def momentum(self, done: float, length: float) -> float | None:
        """Momentum at `done` of `length`."""
        if self.momentum_range is None:
            return None
        lowest, highest = self.momentum_range
        return self._along(progress(done, length), highest, lowest, highest)

    def _along(self, x: float, start: float, top: float, end: float) -> float:
        corners = [(0.0, start), (self.peak, top), (1.0, end)]
        if self.three_phases:
            corners[2:2] = [(2.0 * self.peak, start)]
        for (left, low), (right, high) in pairwise(corners):
            if x <= right:
                share = (x - left) / (right - left)
                if self.curve == "cosine":
                    share = (1.0 - math.cos(math.pi * share)) / 2.0
                return low + (high - low) * share
        return end


def _checked(momentum_range: tuple[float, float] | None) -> tuple[float, float] | None:
    if momentum_range is None:
        return None
    values = tuple(momentum_range)
    if len(values) != 2 or not all(map(is_number, values)) or not 0.0 <= values[0] <= values[1] < 1.0:
        raise ValueError(
            "`OneCycle(momentum_range=...)` must be the lowest and the highest momentum, both in [0, 1), or None, "
            f"got {momentum_range!r}."
        )
    return float(values[0]), float(values[1])
