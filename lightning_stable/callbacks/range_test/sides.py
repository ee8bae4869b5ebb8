# SPDX-License-Identifier: Apache-2.0
"""The sides of a range test: a sweep over the rates, and the search for the edge, with one setting of the optimizer."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from lightning_stable.callbacks.range_test.base_rates import BaseRates, set_momentum, set_weight_decay
from lightning_stable.callbacks.range_test.curve import (
    Divergence,
    HeldRate,
    RangeCurve,
    find_edge,
    hold_steps,
    steepest_of,
)
from lightning_stable.callbacks.range_test.trial_steps import TrialSteps


@dataclass(frozen=True)
class RangeTestResult:
    """What a range test has found.

    Args:
        rates: Those of the sweep, until it ended.
        losses: The training loss after the step with each of them.
        smoothed: Their running mean.
        max_lr: The largest rate that held.
        min_lr: A tenth of it.
        steepest_lr: Where the smoothed loss falls fastest; `None` if it never falls.
        diverged: Whether there are rates on the grid that do not hold; if not, `max_lr` is the grid's last one.
        momentum: The value that is recommended; `None` if none was tested.
        weight_decay: The value that is recommended; `None` if none was tested.
        of_momentum: The curve of each value that was tested.
        of_weight_decay: The curve of each value that was tested.
        steps: How many optimizer steps were tried.

    Example:
        >>> result = RangeTestResult([0.1], [1.0], [1.0], 0.1, 0.01, None, diverged=False)
        >>> result.momentum is None
        True
    """

    rates: list[float]
    losses: list[float]
    smoothed: list[float]
    max_lr: float
    min_lr: float
    steepest_lr: float | None
    diverged: bool
    momentum: float | None = None
    weight_decay: float | None = None
    of_momentum: dict[float, RangeCurve] = field(default_factory=dict)
    of_weight_decay: dict[float, RangeCurve] = field(default_factory=dict)
    steps: int = 0


class RangeSides:
    """Runs one side after another; all of them see the same batches and the same random numbers.

    Args:
        steps: Takes the steps.
        grid: The rates.
        factor: How many times the best loss is divergence.
        smoothing: Of the running mean.
        logarithmic: Whether the grid is exponential.

    Example:
        >>> RangeSides.__name__  # needs a running fit; see `LRRangeTest`
        'RangeSides'
    """

    def __init__(
        self,
        steps: TrialSteps,
        grid: list[float],
        factor: float,
        smoothing: float,
        logarithmic: bool,
    ) -> None:
        self._steps = steps
        self._grid = grid
        self._factor, self._smoothing, self._logarithmic = factor, smoothing, logarithmic
        self.said: Callable[[int], None] = lambda taken: None  # called after each step with how many were taken
        self.taken = 0
        self.rates = BaseRates(steps.optimizer, steps.schedulers)

    def most_steps(self, sides: int) -> int:
        """How many steps so many sides can take at most."""
        longest = self._longest
        return sides * (len(self._grid) + 1 + len(self._grid).bit_length() * (longest + 1)) + longest + 1

    def run(self, momentum: float | None = None, weight_decay: float | None = None) -> RangeCurve:
        """The sweep, and the edge; what is not given is as the run has it."""

        def start() -> None:
            self._steps.start_again()
            if momentum is not None:
                set_momentum(self._steps.optimizer, momentum)
            if weight_decay is not None:
                set_weight_decay(self._steps.optimizer, weight_decay)

        losses, smoothed, diverged = self._sweep(start)
        tried = len(losses) - 1 if diverged else len(self._grid)  # the last one of them is known to be too large
        edge = find_edge(tried, lambda index: self._holds(index, start))
        return RangeCurve(
            rates=self._grid[: len(losses)],
            losses=losses,
            smoothed=smoothed,
            largest=None if edge is None else self._grid[edge],
            diverged=edge is None or edge + 1 < len(self._grid),
            steepest=steepest_of(self._grid, losses, self._smoothing, self._logarithmic),
        )

    def _sweep(self, start: Callable[[], None]) -> tuple[list[float], list[float], bool]:
        """One step with each rate: the losses after them, smoothed ones, and whether the last one is divergence."""
        has_diverged = Divergence(self._factor, self._smoothing)
        losses: list[float] = []
        smoothed: list[float] = []
        start()
        diverged = has_diverged(self._take(self._grid[0]))
        for rate in [*self._grid[1:], None]:
            if diverged:
                break
            losses.append(self._take(rate))  # before this step, and so after the one with the rate before
            diverged = has_diverged(losses[-1])
            smoothed.append(has_diverged.smoothed)
        return losses, smoothed, diverged

    def _holds(self, index: int, start: Callable[[], None]) -> bool:
        harms = HeldRate(self._unlearned, self._factor, self._smoothing)
        start()
        if any(harms(self._take(self._grid[index])) for _ in range(hold_steps(self._grid, index) + 1)):
            return False
        return harms.held()

    @cached_property
    def _unlearned(self) -> Sequence[float]:
        """The losses of the same batches where nothing is learned."""
        self._steps.start_again()
        return [self._take(None) for _ in range(self._longest + 1)]

    @cached_property
    def _longest(self) -> int:
        return max(hold_steps(self._grid, index) for index in range(len(self._grid)))

    def _take(self, rate: float | None) -> float:
        """The loss before a step with `rate`; with `None` there is no step."""
        if rate is not None:
            self.rates.set(rate)
        loss = self._steps.look() if rate is None else self._steps.take()
        self.taken += 1
        self.said(self.taken)
        return loss


def best_of(curves: Mapping[float, RangeCurve]) -> float | None:
    """The value whose curve allows the largest rate; among several such, that with the lowest smoothed loss.

    Example:
        >>> low, high = (RangeCurve([1.0], [loss], [loss], 1.0, True, None) for loss in (2.0, 3.0))
        >>> best_of({0.8: high, 0.9: low}), best_of({})
        (0.9, None)
    """
    usable = {value: curve for value, curve in curves.items() if curve.largest is not None}
    return max(usable, key=lambda value: (usable[value].largest, -usable[value].lowest), default=None)
