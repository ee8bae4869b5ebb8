# SPDX-License-Identifier: Apache-2.0
"""What the guard can do about a spike, in order of severity.

Every response begins by vetoing the step: the optimizer never sees the bad gradient. What a response adds to that is
one call on `Recovery`, which knows how; a response only says what.
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

    def roll_back(self, replay: bool) -> list[str]:
        """Restore the last snapshot; replay the good batches since then, or go on with new ones."""
        ...

    def scale_lr(self, factor: float) -> list[str]:
        """Multiply the learning rate from here on."""
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
    halts = False

    def __init__(self, times: int) -> None:
        if times < 1:
            raise ValueError(f"`{type(self).__name__}(times=...)` must be at least 1, got {times}.")
        self.times = times

    @abstractmethod
    def respond(self, actions: Actions) -> list[str]:
        """Do it, and say in words what was restored."""


class SkipStep(Response):
    """Leave the step out: weights, buffers, schedules, counters and random numbers are as if it never happened.

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


class Rollback(Response):
    """Restore the last snapshot inside the running `fit`.

    `skip` goes on with the data that follows, as was done by hand for PaLM; the batches since the snapshot are lost.
    `replay` runs the good batches since the snapshot again and leaves the bad ones out. Either way the result equals,
    bit for bit, a run whose loader never held the batches that were left out. Snapshots are not in checkpoints: a
    resumed run begins with a new one, from which `skip` may lose fewer batches than the uninterrupted run does.

    Args:
        mode: `skip` or `replay`. `replay` keeps the batches since the snapshot in memory.
        times: How often in a row of incidents, at least 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from lightning_stable.guard import Halt, SpikeGuard
        >>> guard = SpikeGuard(ladder=[Rollback(mode="replay", times=5), Halt()], snapshot_every=20)
    """

    back = needs_snapshots = 1

    def __init__(self, mode: Literal["skip", "replay"] = "skip", times: int = 2) -> None:
        super().__init__(times)
        if mode not in ("skip", "replay"):
            raise ValueError(f'`Rollback(mode=...)` must be "skip" or "replay", got {mode!r}.')
        self.mode = mode
        self.needs_replay = mode == "replay"

    def respond(self, actions: Actions) -> list[str]:
        """Restore the snapshot."""
        return actions.roll_back(replay=self.needs_replay)


class ScaleLR(Response):
    """Leave the step out and multiply the learning rate by `factor` from there on, whatever the schedule does.

    The factor acts only while the optimizer's step runs, so schedulers in closed form do not forget it.

    Args:
        factor: Between 0 and 1, both excluded.
        times: How often in a row of incidents, at least 1.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from lightning_stable.guard import Halt, SpikeGuard
        >>> guard = SpikeGuard(ladder=[ScaleLR(factor=0.5, times=2), Halt()])
    """

    def __init__(self, factor: float = 0.5, times: int = 2) -> None:
        super().__init__(times)
        if not (math.isfinite(factor) and 0 < factor < 1):
            raise ValueError(f"`ScaleLR(factor=...)` must lie between 0 and 1, both excluded, got {factor}.")
        self.factor = factor

    def respond(self, actions: Actions) -> list[str]:
        """Undo the step and lower the learning rate."""
        return [*actions.undo_step(count_skipped=False), *actions.scale_lr(self.factor)]


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
