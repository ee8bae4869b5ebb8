# SPDX-License-Identifier: Apache-2.0
"""Many faults in one run, and random ones that can be had again."""

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from lightning_stable.testing.faults import FAULT_KINDS
from lightning_stable.testing.inject_fault import InjectFault

ANY_MODEL = tuple(kind for kind, known in FAULT_KINDS.items() if known.is_loud and known.hits != "batch")


class FaultSchedule(Sequence[InjectFault]):
    """Faults for one run; what it prints is the line that makes it again.

    Args:
        faults: The faults, in any order; no two alike.

    Raises:
        ValueError: If two faults are the same.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> schedule = FaultSchedule([InjectFault("nan_loss", step=7), InjectFault("nan_loss", step=8)])
        >>> schedule
        FaultSchedule([InjectFault('nan_loss', step=7), InjectFault('nan_loss', step=8)])
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(callbacks=[*schedule], accelerator="cpu", **quiet)
    """

    def __init__(self, faults: Sequence[InjectFault]) -> None:
        self._faults = list(faults)
        written = [repr(fault) for fault in self._faults]
        for line in written:
            if written.count(line) > 1:
                raise ValueError(f"`FaultSchedule(faults=...)` must hold each fault once, got {line} more than once.")

    def __getitem__(self, index: Any) -> Any:
        return self._faults[index]

    def __len__(self) -> int:
        return len(self._faults)

    def __iter__(self) -> Iterator[InjectFault]:
        return iter(self._faults)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, FaultSchedule) and repr(self) == repr(other)

    def __hash__(self) -> int:
        return hash(repr(self))

    def __repr__(self) -> str:
        return f"FaultSchedule({self._faults!r})"


def random_faults(
    seed: int,
    steps: int,
    kinds: Sequence[str] | Mapping[str, Mapping[str, Any]] = ANY_MODEL,
    count: int = 3,
    first: int = 0,
) -> FaultSchedule:
    """Draw a schedule of faults at different steps; the same seed draws the same one on every machine.

    Args:
        seed: Any integer.
        steps: Optimizer steps of the run; faults are at steps `first` to `steps - 1`.
        kinds: The kinds to draw from, or from each kind to further arguments for `InjectFault`. Default: those that
            any model can have, and a guard can see.
        count: How many faults, at most `steps - first`.
        first: The first step that can be hit, for example where detectors have warmed up.

    Raises:
        ValueError: If there is no kind, or there are not `count` steps to hit.

    Example:
        >>> random_faults(seed=3, steps=100, kinds=["nan_loss", "huge_gradient"], count=2)
        FaultSchedule([InjectFault('nan_loss', step=23), InjectFault('huge_gradient', step=54)])
        >>> random_faults(seed=0, steps=9, kinds={"huge_loss": {"factor": 10.0}}, count=1)
        FaultSchedule([InjectFault('huge_loss', step=7, factor=10.0)])
    """
    if not kinds:
        raise ValueError("`random_faults(kinds=...)` must hold at least one kind, got none.")
    if not 0 <= count <= steps - first:
        raise ValueError(
            f"`random_faults(count=...)` must be from 0 to {max(steps - first, 0)}, the steps from first={first} to "
            f"steps={steps}, got {count}."
        )
    generator = random.Random(seed)
    left, names = list(range(first, steps)), list(kinds)
    drawn = sorted(left.pop(_below(len(left), generator)) for _ in range(count))
    arguments = dict(kinds) if isinstance(kinds, Mapping) else {}
    faults = [(names[_below(len(names), generator)], step) for step in drawn]
    return FaultSchedule([InjectFault(kind, step, **arguments.get(kind, {})) for kind, step in faults])


def _below(bound: int, generator: random.Random) -> int:
    """A random index; of Python's generator only `random()` promises to be the same in every version."""
    return int(generator.random() * bound)
