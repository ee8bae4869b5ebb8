# SPDX-License-Identifier: Apache-2.0
"""The straight line down to zero."""

from lightning_stable.schedules.profile import Profile, progress


class Linear(Profile):
    """Decays the learning rate in a straight line.

        factor = 1 - done / length

    Paper: Li, Yumer and Ramanan, "Budgeted Training: Rethinking Deep Neural Network Training Under Resource
    Constraints" (ICLR 2020); Defazio et al., "When, Why and How Much? Adaptive Learning Rate Scheduling by Refinement"
    (2023), who prove that it is optimal for gradient norms that stay constant.

    Deviations: none.

    Example:
        >>> [Linear().factor(done, 4) for done in range(5)]
        [1.0, 0.75, 0.5, 0.25, 0.0]
    """

    def factor(self, done: float, length: float) -> float:
        """The line at `done` of `length`."""
        return 1.0 - progress(done, length)
