# SPDX-License-Identifier: Apache-2.0
"""What is left to look at after a run that recovered."""

from dataclasses import dataclass
from typing import Any

from lightning_stable.testing.fired_fault import FiredFault


@dataclass(frozen=True)
class RecoveredRun:
    """What `assert_recovers` returns.

    Args:
        incidents: The guard's, in order.
        fired: Every time a fault came true, in order.
        final_loss: Mean training loss of the last steps that were kept.
        global_step: Optimizer steps that were kept.
        halted: Whether the guard ended the run, as was allowed.

    Example:
        >>> run = RecoveredRun(incidents=[], fired=[], final_loss=1.25, global_step=40, halted=False)
        >>> run.final_loss
        1.25
    """

    incidents: list[Any]
    fired: list[FiredFault]
    final_loss: float
    global_step: int
    halted: bool
