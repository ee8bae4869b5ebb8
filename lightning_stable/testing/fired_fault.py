# SPDX-License-Identifier: Apache-2.0
"""Where and when a fault came true."""

from dataclasses import asdict, dataclass
from typing import Any


@dataclass(frozen=True)
class FiredFault:
    """One time that an `InjectFault` has changed something.

    Args:
        kind: What it was.
        step: The loggers' x axis, which is that of `Incident.step`, too: an incident of the same step answers it.
        global_step: Optimizer steps of the model before it.
        epoch: The epoch, from 0.
        batch: The batch index within the epoch; -1 before the first batch, as after a resume.

    Example:
        >>> fault = FiredFault("nan_loss", step=7, global_step=7, epoch=0, batch=7)
        >>> print(fault)
        nan_loss at step 7 (batch 7 of epoch 0)
        >>> FiredFault(**fault.to_json()) == fault
        True
    """

    kind: str
    step: int
    global_step: int
    epoch: int
    batch: int

    def to_json(self) -> dict[str, Any]:
        """The fields in plain types."""
        return asdict(self)

    def __str__(self) -> str:
        return f"{self.kind} at step {self.step} (batch {self.batch} of epoch {self.epoch})"
