# SPDX-License-Identifier: Apache-2.0
"""The rates of a range test, and what their losses say."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal

_GROWTH = 1e6  # a part of the loss as small as one millionth is to be seen when it grows
_FEWEST_STEPS = 8
_WORSE = 0.02  # relative: tiny rates may do harm by chance, and little of it
_LOWEST = 0.01  # of the first loss: below it, ups and downs are no divergence


@dataclass(frozen=True)
class RangeCurve:
    """The losses of one sweep over the rates, and the largest rate that held.

    Args:
        rates: Those of the sweep until it ended.
        losses: The training loss after the step with each rate.
        smoothed: A running mean of them, with its bias corrected.
        largest: The largest rate of the grid that held; `None` if none did.
        diverged: Whether there is a rate on the grid that did not hold.
        steepest: The rate at which the smoothed loss falls fastest; `None` if it never falls.

    Example:
        >>> RangeCurve([0.1, 1.0], [2.0, 1.0], [2.0, 1.4], largest=0.1, diverged=True, steepest=None).lowest
        1.4
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    largest: float | None
    diverged: bool
    steepest: float | None

    @property
    def lowest(self) -> float:
        """The lowest smoothed loss; NaN if there is none."""
        return min((loss for loss in self.smoothed if math.isfinite(loss)), default=math.nan)


def grid_of(min_lr: float, max_lr: float, steps: int, spacing: Literal["exponential", "linear"]) -> list[float]:
    """The rates from `min_lr` to `max_lr`, both included.

    Example:
        >>> grid_of(1.0, 100.0, 3, "exponential"), grid_of(1.0, 3.0, 3, "linear")
        ([1.0, 10.0, 100.0], [1.0, 2.0, 3.0])
    """
    shares = [index / (steps - 1) for index in range(steps)]
    if spacing == "linear":
        rates = [min_lr + (max_lr - min_lr) * share for share in shares]
    else:
        rates = [min_lr * (max_lr / min_lr) ** share for share in shares]
    return [min_lr, *rates[1:-1], max_lr]


class RunningMean:
    """An exponential running mean whose bias towards 0 is corrected.

        m_t = smoothing * m_(t-1) + (1 - smoothing) * x_t;    mean_t = m_t / (1 - smoothing^t)

    Example:
        >>> mean = RunningMean(0.9)
        >>> mean(4.0), round(mean(2.0), 4)
        (4.0, 2.9474)
    """

    def __init__(self, smoothing: float) -> None:
        self._smoothing = smoothing
        self._sum = self._weight = 0.0

    def __call__(self, value: float) -> float:
        """The mean with one more value."""
        self._sum = self._smoothing * self._sum + (1 - self._smoothing) * value
        self._weight = self._smoothing * self._weight + (1 - self._smoothing)
        return self._sum / self._weight


class Divergence:
    """Tells, loss by loss, whether a sweep has diverged.

        loss not finite, or smoothed loss > factor * best;    best = max(lowest smoothed loss, first loss / 100)

    A loss that can be negative, as a log-likelihood, has no factor: there the limit is `best + (factor - 1) * d`, and d
    the larger of |best| and how far the smoothed loss has come down.

    Example:
        >>> has_diverged = Divergence(factor=4.0, smoothing=0.0)
        >>> [has_diverged(loss) for loss in (2.0, 1.0, 3.9, 4.1)]
        [False, False, False, True]
    """

    def __init__(self, factor: float, smoothing: float) -> None:
        self._factor = factor
        self._mean = RunningMean(smoothing)
        self._first: float | None = None
        self._best = math.inf
        self.smoothed = math.nan

    def __call__(self, loss: float) -> bool:
        """Take one more loss."""
        self.smoothed = self._mean(loss)
        if not math.isfinite(self.smoothed):
            return True
        self._first = self.smoothed if self._first is None else self._first
        self._best = min(self._best, self.smoothed)
        return self.smoothed > self._limit(self._first)

    def _limit(self, first: float) -> float:
        if self._best >= 0:
            return self._factor * max(self._best, _LOWEST * first)
        return self._best + (self._factor - 1) * max(abs(self._best), first - self._best)


def hold_steps(rates: Sequence[float], index: int) -> int:
    """How many steps with one rate show that it is a bin of the grid, or more, too large.

    Beyond the edge of a quadratic, 2 / lambda_max, the loss along the sharpest direction grows in each step of gradient
    descent by (eta * lambda_max - 1)^2. At a rate that is the edge times r, the ratio of the bin to the one below it:

        (2 r - 1)^(2 steps) >= 10^6      so that a millionth of the loss will do

    Example:
        >>> hold_steps(grid_of(1e-7, 10.0, 100, "exponential"), 50)
        21
    """
    ratio = rates[index] / rates[index - 1] if index else rates[1] / rates[0]
    return max(_FEWEST_STEPS, math.ceil(math.log(_GROWTH) / (2 * math.log(2 * ratio - 1))))


class HeldRate:
    """Tells, loss by loss, whether steps with one rate do harm: against the same batches without learning.

        not finite;  or smoothed loss > factor * (smoothed loss without learning)
        at the end:  mean of the last quarter > 1.02 * (that without learning)

    Factors are of sizes, so that losses may be negative.

    Example:
        >>> harms = HeldRate(unlearned=[1.0] * 9, factor=4.0, smoothing=0.0)
        >>> [harms(loss) for loss in (1.0, 0.5, 3.0, 4.5)]
        [False, False, False, True]
    """

    def __init__(self, unlearned: Sequence[float], factor: float, smoothing: float) -> None:
        self._unlearned = unlearned
        self._factor = factor
        self._mean, self._mean_unlearned = RunningMean(smoothing), RunningMean(smoothing)
        self._losses: list[float] = []

    def __call__(self, loss: float) -> bool:
        """Take one more loss."""
        smoothed, without = self._mean(loss), self._mean_unlearned(self._unlearned[len(self._losses)])
        self._losses.append(loss)
        return not math.isfinite(smoothed) or smoothed > without + (self._factor - 1) * abs(without)

    def held(self) -> bool:
        """Whether the losses so far end no worse than they would have without learning."""
        last = max(1, len(self._losses) // 4)
        mean = math.fsum(self._losses[-last:]) / last
        without = math.fsum(self._unlearned[len(self._losses) - last : len(self._losses)]) / last
        return mean <= without + _WORSE * abs(without)


def find_edge(count: int, holds: Callable[[int], bool]) -> int | None:
    """The largest of `count` indices that holds, found by halving; `None` if not even the first one does.

    Example:
        >>> find_edge(100, lambda index: index <= 37)
        37
    """
    held, failed = -1, count
    while failed - held > 1:
        middle = (held + failed) // 2
        if holds(middle):
            held = middle
        else:
            failed = middle
    return held if held >= 0 else None


def steepest_of(rates: Sequence[float], losses: Sequence[float], smoothing: float, logarithmic: bool) -> float | None:
    """The rate at which the loss falls fastest, per bin of the grid, on the way to its lowest value.

    A running mean lags behind; the mean of one that runs upwards and one that runs downwards does not.

    Example:
        >>> steepest_of([1, 2, 3, 4, 5, 6], [9, 9, 8, 2, 0, 30], smoothing=0.0, logarithmic=False)
        4
    """
    forward = RunningMean(smoothing)
    smoothed = [forward(loss) for loss in losses]
    smoothed = smoothed[: next((i for i, loss in enumerate(smoothed) if not math.isfinite(loss)), None)]
    if len(smoothed) < 3:
        return None
    end = min(range(len(smoothed)), key=smoothed.__getitem__) + 1
    backward = RunningMean(smoothing)
    downwards = [backward(loss) for loss in reversed(losses[:end])][::-1]
    centred = [(one + other) / 2 for one, other in zip(smoothed, downwards, strict=False)]
    at = [math.log(rate) for rate in rates] if logarithmic else list(rates)
    slopes = {i: (centred[i + 1] - centred[i - 1]) / (at[i + 1] - at[i - 1]) for i in range(1, end - 1)}
    best = min(slopes, key=slopes.__getitem__, default=None)
    return rates[best] if best is not None and slopes[best] < 0 else None
