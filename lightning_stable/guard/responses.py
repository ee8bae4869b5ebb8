# SPDX-License-Identifier: Apache-2.0
"""What the guard can do about the step that spiked, in order of severity.

Every response but `ClipStep` begins by vetoing the step: the optimizer never sees the bad gradient. What a response
adds to that is one call on `Recovery`, which knows how; a response only says what.
"""

import math
from abc import ABC, abstractmethod
from typing import Literal, Protocol


class Actions(Protocol):
    """What a response may ask for. Each call returns in words what it has put back.

    Example:
        >>> Actions.__name__  # implemented by the guard's recovery
        'Actions'
    """

    def undo_step(self, count_skipped: bool) -> list[str]:
        """Make the vetoed step one that never happened."""
        ...

    def can_clip(self) -> bool:
        """Whether the gradients are finite, and larger than what is known to be typical of them."""
        ...

    def clip_step(self) -> list[str]:
        """Scale the gradients, in place, to the typical norm."""
        ...

    def repeats(self) -> int:
        """How many rollbacks in a row have not helped at this place; 0 at a new one."""
        ...

    def roll_back(self, back: int, replay: bool, pass_over: int) -> list[str]:
        """Restore the `back`-th newest snapshot; replay the good batches since then, or go on with new ones.

        The next `pass_over` batches of the loader are fetched and not trained on.
        """
        ...

    def return_to_loaded(self) -> list[str]:
        """Restore what a resume has loaded, and make the steps since then again if their batches are kept."""
        ...

    def scale_lr(self, factor: float, recover_after: int | None) -> list[str]:
        """Multiply the learning rate from here on, or until it has recovered."""
        ...

    def reset_momentum(self, moments: Literal["first", "all"]) -> list[str]:
        """Zero the optimizers' moments."""
        ...


class Response(ABC):
    """One rung of the ladder.

    Args:
        times: How often it may answer before the next rung does, at least 1.

    Example:
        >>> SkipStep(times=5).times
        5
    """

    back = 0  # how many snapshots it goes back at first
    needs_snapshots = 0  # how many it can make use of
    needs_replay = False
    needs_batches = False  # those of the step that spiked
    vetoes = True  # the optimizer is kept from moving, and `respond` is called when the step is over
    is_side = False  # acts beside the response that answers, and does not use up the spike
    takes_warnings = False  # acts at a warning, too, which spends nothing
    halts = False

    def __init__(self, times: int) -> None:
        if times < 1:
            raise ValueError(f"`{type(self).__name__}(times=...)` must be at least 1, got {times}.")
        self.times = times

    def applies(self, actions: Actions) -> bool:
        """Whether it can answer this spike; if not, the next rung is asked and nothing is spent."""
        return True

    @abstractmethod
    def respond(self, actions: Actions) -> list[str]:
        """Do it, and say in words what was restored."""


class SkipStep(Response):
    """Leave the step out: weights, buffers, schedules, counters and random numbers are as if it never happened.

    Where several optimizers step in one batch, by hand, and a later one spikes, the steps of those before it are taken
    back too.

    Args:
        times: How often in a row of incidents, at least 1.
        count_skipped: Let schedules and `global_step` run on, as automatic mixed precision does with its own skips.

    Raises:
        ValueError: If `times` is below 1.

    Example:
        >>> from lightning_stable.guard import Halt, SpikeGuard
        >>> guard = SpikeGuard(ladder=[SkipStep(times=10), Halt()])
    """

    def __init__(self, times: int = 3, count_skipped: bool = False) -> None:
        super().__init__(times)
        self.count_skipped = count_skipped

    def respond(self, actions: Actions) -> list[str]:
        """Undo the step."""
        return actions.undo_step(self.count_skipped)


class ClipStep(Response):
    """Take the step, with its gradients scaled down to what has been typical of late.

        g <- g * typical / |g|      typical: the median of the last 64 accepted gradient norms of this optimizer; while
                                    there is none, the largest norm its detector would have let pass

    For spikes of finite size from rare but honest data, of which a step left out would learn nothing. It does not apply
    where the loss or a gradient is not finite, where nothing is known yet, or where the norm is no larger than typical,
    so that the loss alone gave the spike away: then the next rung is asked, and no budget is spent. The whole rest of
    the step is left alone: buffers, schedules and counters move as in any step. The spiked values never enter the
    history that later steps are judged by. Only the ratio of two norms is used, so a gradient scaler does not matter;
    each of several optimizers is clipped to what is typical of its own.

    After the idea of AutoClip (Seetharaman et al., "AutoClip: Adaptive Gradient Clipping for Source Separation
    Networks", 2020), for spikes alone and to the median.

    Args:
        times: How often in a row of incidents, at least 1.

    Raises:
        ValueError: If `times` is below 1.

    Example:
        >>> from lightning_stable.guard import Halt, SkipStep, SpikeGuard
        >>> guard = SpikeGuard(ladder=[ClipStep(times=5), SkipStep(times=5), Halt()])
    """

    vetoes = False

    def __init__(self, times: int = 3) -> None:
        super().__init__(times)

    def applies(self, actions: Actions) -> bool:
        """Whether there is something to shrink, and something to shrink it to."""
        return actions.can_clip()

    def respond(self, actions: Actions) -> list[str]:
        """Shrink the gradients; called before the step."""
        return actions.clip_step()


class ScaleLR(Response):
    """Leave the step out and multiply the learning rate by `factor` from there on, whatever the schedule does.

    The factor acts only while the optimizer's step runs, so schedulers in closed form do not forget it. With
    `recover_after` n, once n steps in a row were clean at the lowered scale s, the k-th step after them runs at

        s^(1 - k/n),  k = 1 ... n

    that is, the scale rises to 1 in equal ratios. Any spike, whatever answers it, stops the rise at the scale it came
    at, and begins the count anew. Where several `ScaleLR` have answered, the scale is their product, and the last one's
    rule holds.

    Args:
        factor: Between 0 and 1, both excluded.
        times: How often in a row of incidents, at least 1.
        recover_after: Clean optimizer steps after which the scale begins to rise, at least 1; `None` for never.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from lightning_stable.guard import Halt, SpikeGuard
        >>> guard = SpikeGuard(ladder=[ScaleLR(factor=0.5, times=2), Halt()])
    """

    def __init__(self, factor: float = 0.5, times: int = 2, recover_after: int | None = None) -> None:
        super().__init__(times)
        if not (math.isfinite(factor) and 0 < factor < 1):
            raise ValueError(f"`ScaleLR(factor=...)` must lie between 0 and 1, both excluded, got {factor}.")
        if recover_after is not None and recover_after < 1:
            raise ValueError(f"`ScaleLR(recover_after=...)` must be at least 1 or None, got {recover_after}.")
        self.factor = factor
        self.recover_after = recover_after

    def respond(self, actions: Actions) -> list[str]:
        """Undo the step and lower the learning rate."""
        return [*actions.undo_step(count_skipped=False), *actions.scale_lr(self.factor, self.recover_after)]


class ResetMomentum(Response):
    """Leave the step out and zero the optimizers' moments, which an undetected spike may have poisoned.

    Args:
        moments: `first` zeroes the momentum only, which is the safe choice; `all` zeroes the second moments too and
            restarts bias correction.
        times: How often in a row of incidents, at least 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from lightning_stable.guard import Halt, SkipStep, SpikeGuard
        >>> guard = SpikeGuard(ladder=[SkipStep(), ResetMomentum(), Halt()])
    """

    def __init__(self, moments: Literal["first", "all"] = "first", times: int = 2) -> None:
        super().__init__(times)
        if moments not in ("first", "all"):
            raise ValueError(f'`ResetMomentum(moments=...)` must be "first" or "all", got {moments!r}.')
        self.moments: Literal["first", "all"] = moments

    def respond(self, actions: Actions) -> list[str]:
        """Undo the step and zero the moments."""
        return [*actions.undo_step(count_skipped=False), *actions.reset_momentum(self.moments)]


class Halt(Response):
    """Leave the step out and end the run with `TrainingHalted`, the weights still good.

    Example:
        >>> Halt().halts
        True
    """

    halts = True

    def __init__(self) -> None:
        super().__init__(times=1)

    def respond(self, actions: Actions) -> list[str]:
        """Undo the step; the guard then raises."""
        return actions.undo_step(count_skipped=False)


class TrainingHalted(RuntimeError):
    """The ladder has come to its end: the run was stopped on purpose, with its last good weights.

    Args:
        report: What happened and what to try, for people.

    Example:
        >>> TrainingHalted("SpikeGuard halted the run").report
        'SpikeGuard halted the run'
    """

    def __init__(self, report: str) -> None:
        super().__init__(report)
        self.report = report
