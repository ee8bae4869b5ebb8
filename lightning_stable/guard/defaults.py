# SPDX-License-Identifier: Apache-2.0
"""What a `SpikeGuard` without arguments watches and does."""

from lightning_stable.detectors import Detector, LevelShift, MedianDeviation
from lightning_stable.guard.responses import Halt, Response, ScaleLR, SkipStep
from lightning_stable.guard.rollback import Rollback
from lightning_stable.guard.signals import GRAD_NORM, LOSS


def default_watch() -> dict[str, Detector]:
    """Return detectors of loss and gradient norm.

    The floors: a loss that rises by less than 0.15 nats needs no answer, and gradient norms of healthy runs vary by a
    factor of 2 or 3.

    Example:
        >>> sorted(default_watch())
        ['grad_norm', 'loss']
    """
    return {LOSS: MedianDeviation(min_rise=0.15), GRAD_NORM: MedianDeviation(min_ratio=4.0)}


def default_warnings() -> dict[str, Detector]:
    """Return the detector of a loss that diverges slowly.

    The value that ends a block is no worse than those before it, so an alarm is no reason to veto the step it came at.

    Example:
        >>> default_warnings()["loss"].block
        100
    """
    return {LOSS: LevelShift()}


def default_ladder() -> list[Response]:
    """Return responses that always come to an end.

    Ten bad steps cost ten batches, and going back costs up to `snapshot_every` good ones and cures only a bad state. Of
    that only a long row of spikes speaks: where one batch in ten is bad, eleven of which no two neighbours have five
    good ones between them come once in some 40,000 steps; where half of the steps spike, at once.

    Example:
        >>> [type(rung).__name__ for rung in default_ladder()]
        ['SkipStep', 'Rollback', 'ScaleLR', 'Halt']
    """
    return [SkipStep(times=10), Rollback(times=2, escalate=8), ScaleLR(factor=0.5, times=2), Halt()]
