# SPDX-License-Identifier: Apache-2.0
"""The last few snapshots of an epoch, and the batches that were trained on since each of them."""

import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any, Literal

import torch
import torch.distributed as dist
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_stable.snapshots.memory import SnapshotMemory, memory_share, snapshot_memory
from lightning_stable.snapshots.snapshot import Snapshot
from lightning_stable.snapshots.transfer import Transfer

_LARGE_SHARE = 0.1  # of the memory they live in: snapshots that take more are announced


class Slot:
    """One snapshot and what belongs to it.

    Args:
        snapshot: Its buffers.

    Example:
        >>> Slot.__name__  # made by `SnapshotRing`
        'Slot'
    """

    def __init__(self, snapshot: Snapshot) -> None:
        self.snapshot = snapshot
        self.signals: dict[str, Any] = {}
        self.batches: list[Any] = []  # trained on from this snapshot to the next
        self.windows = 0  # likewise
        self.taken_at = 0.0


class SnapshotRing:
    """Takes a snapshot into the oldest of `count` slots, and goes back to any of them.

    All buffers are made here, once: those of optimizer state that is born in the first step, right after it.

    Args:
        trainer: The trainer in its `fit`.
        pl_module: The module it trains.
        guard: The callback this works for.
        count: Slots, at least 1.
        to: Where snapshots of a model on CUDA live: `device`, or `host` for pinned memory.
        max_bytes: What they may take together.
        is_temporary: Whether it is there for the first steps after a resume only.
        others: Copies of the training state that are kept beside these, and count as memory.

    Raises:
        ValueError: If they take more than `max_bytes`; nothing has been allocated then.

    Example:
        >>> SnapshotRing.__name__  # needs a running fit; see `SpikeGuard`
        'SnapshotRing'
    """

    def __init__(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        guard: Callback,
        count: int,
        to: Literal["device", "host"],
        max_bytes: int | None,
        is_temporary: bool = False,
        others: int = 0,
    ) -> None:
        self.is_temporary = is_temporary
        self._trainer = trainer
        self._max_bytes = max_bytes
        self._measure: Callable[[], SnapshotMemory] = lambda: snapshot_memory(trainer, pl_module, guard, count + others)
        self.memory = self._measured()
        self.on_host = to == "host" or trainer.strategy.root_device.type != "cuda"
        self._transfer = Transfer(to)
        self._free = [Slot(Snapshot(trainer, pl_module, guard, self._transfer)) for _ in range(count)]
        self._taken: list[Slot] = []  # oldest first
        self._has_optimizer_state = False
        self._pins_next = False
        self.pinned: Slot | None = None

    def announce(self) -> None:
        """Say what they take if it is much."""
        share = memory_share(self._trainer, self.memory.total, self.on_host)
        if share > _LARGE_SHARE:
            rank_zero_info(f"SpikeGuard keeps snapshots, {self}: {share:.0%} of it.")

    def __len__(self) -> int:
        return len(self._taken)

    def __str__(self) -> str:
        return f"{self.memory}, {'in host memory' if self.on_host else 'on the device'}"

    @property
    def newest(self) -> Slot:
        """The latest snapshot; there must be one."""
        return self._taken[-1]

    def older_than(self, global_step: int) -> list[Snapshot]:
        """The snapshots with at least one optimizer step between them and `global_step`, the newest first."""
        return [slot.snapshot for slot in reversed(self._taken) if slot.snapshot.global_step < global_step]

    def allocate_optimizer_state(self) -> None:
        """Make the buffers for optimizer state as soon as there is any; called again it does nothing."""
        if self._has_optimizer_state or not all(optimizer.state for optimizer in self._trainer.optimizers):
            return
        self._has_optimizer_state = True
        self.memory = self._measured()
        for slot in (*self._free, *self._taken):
            slot.snapshot.allocate_optimizer_state()

    def capture(self, signals: dict[str, Any]) -> None:
        """Begin a snapshot; `wait` must be called before the optimizer moves."""
        slot = self._free.pop() if self._free else self._oldest()
        slot.snapshot.capture()
        slot.signals, slot.batches, slot.windows = signals, [], 0
        slot.taken_at = time.perf_counter()
        self._taken.append(slot)
        if self._pins_next:
            self.pinned, self._pins_next = slot, False

    @property
    def can_capture(self) -> bool:
        """Whether there is a slot for another snapshot beside one that is pinned."""
        return bool(self._free) or self.pinned is None or len(self._taken) > 1

    def move_in_first_step(self) -> float | None:
        """The rms of what the weights have moved by, if the newest snapshot was taken one step ago."""
        return self.newest.snapshot.move().rms if self._taken and self.newest.windows == 1 else None

    def move_since_pinned(self) -> float | None:
        """The rms of what the weights have moved by since the snapshot that is pinned, if there is one."""
        return None if self.pinned is None else self.pinned.snapshot.move().rms

    def pin_next(self) -> None:
        """Keep the next snapshot until `unpin`, or until it is forgotten."""
        self._pins_next = True

    def unpin(self) -> None:
        """Let it go as any other."""
        self.pinned = None

    def wait(self) -> None:
        """The snapshot that was begun last is complete before anything that the computation does from here on."""
        self._transfer.wait()

    def go_back(self, back: int) -> tuple[Slot, list[Any], int]:
        """Restore the `back`-th newest snapshot, or the oldest; the newer ones are forgotten.

        Returns its slot, and the batches and the windows since then.
        """
        index = max(0, len(self._taken) - back)
        slot, newer = self._taken[index], self._taken[index + 1 :]
        batches = [batch for one in (slot, *newer) for batch in one.batches]
        windows = sum(one.windows for one in (slot, *newer))
        del self._taken[index + 1 :]
        self._free.extend(newer)
        slot.snapshot.restore()
        slot.batches, slot.windows = [], 0
        return slot, batches, windows

    def forget(self) -> None:
        """A new epoch has begun, and none goes back into the one before."""
        self._free.extend(self._taken)
        self._taken = []
        self.pinned = None

    def _oldest(self) -> Slot:
        """The oldest slot that is not pinned; what was trained on since it belongs to the one before from now on."""
        index = 1 if self._taken[0] is self.pinned else 0
        slot = self._taken.pop(index)
        if index:
            self._taken[0].batches += slot.batches
            self._taken[0].windows += slot.windows
        return slot

    def _measured(self) -> SnapshotMemory:
        memory = self._measure()
        if self._max_bytes is not None and self._trainer.world_size > 1:  # all refuse it, or none: shards are uneven
            largest = torch.tensor(memory.per_slot, device=self._trainer.strategy.root_device)
            dist.all_reduce(largest, dist.ReduceOp.MAX)
            replace(memory, per_slot=int(largest)).refuse_more_than(self._max_bytes)
        memory.refuse_more_than(self._max_bytes)
        return memory
