# SPDX-License-Identifier: Apache-2.0
"""A schedule that was refined by a pilot run's gradient norms."""

from lightning_stable.schedules.profile import Profile, progress
from lightning_stable.schedules.refine import interpolated, load_schedule


class Refined(Profile):
    """Follows the schedule that the gradient norms of an earlier run of the same kind have asked for.

        factor = schedule at done / length, on straight lines between its values

    Paper: Defazio, Cutkosky, Mehta and Mishchenko, "When, Why and How Much? Adaptive Learning Rate Scheduling by
    Refinement" (2023).

    Deviations: none; `refine` has the equation. The schedule has its own warmup, if the norms ask for one: leave
    `warmup_steps` at 0.

    Args:
        path: What `lightning-stable refine RUN_DIR` has written, or `save_schedule`. By default the straight line,
            which is the schedule for norms that stay constant, and so what one knows before the pilot run.

    Raises:
        ValueError: If the file is not there or holds no schedule.

    Example:
        >>> [Refined().factor(done, 4) for done in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def __init__(self, path: str | None = None) -> None:
        self.path = path
        self.values = (1.0, 0.0) if path is None else load_schedule(path)

    def factor(self, done: float, length: float) -> float:
        """The schedule at `done` of `length`."""
        return interpolated(self.values, progress(done, length))
