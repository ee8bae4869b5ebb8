# SPDX-License-Identifier: Apache-2.0
"""The members of a population: one model in the trainer, the states of all others in memory."""

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_info

from lightning_stable.snapshots.memory import memory_share, snapshot_memory
from lightning_stable.snapshots.snapshot import Snapshot
from lightning_stable.snapshots.transfer import Transfer

_LARGE_SHARE = 0.1  # of the memory they live in: a population that takes more is announced


class Members:
    """A snapshot for every member. Which of them is in the trainer is for the caller to know.

    Args:
        trainer: The trainer in its `fit`.
        pl_module: The module it trains.
        owner: The callback that works with them; its own state belongs to no member.
        population: How many there are.
        max_bytes: What they may take together; `None` does not limit it.

    Raises:
        ValueError: If they take more; nothing has been allocated then.

    Example:
        >>> Members.__name__  # needs a running fit; see `PopulationBasedTraining`
        'Members'
    """

    def __init__(
        self, trainer: Trainer, pl_module: LightningModule, owner: Callback, population: int, max_bytes: int | None
    ) -> None:
        memory = snapshot_memory(trainer, pl_module, owner, population)
        if max_bytes is not None and memory.total > max_bytes:
            about = "about " if memory.is_estimate else ""
            raise ValueError(
                f"`PopulationBasedTraining(max_bytes=...)` allows {max_bytes:,} bytes, and a `population` of"
                f" {population} needs {about}{memory.total:,}, {memory.per_slot:,} each. Allow more, or have fewer"
                " members."
            )
        if memory_share(trainer, memory.total, on_host=True) > _LARGE_SHARE:
            rank_zero_info(f"PopulationBasedTraining keeps its members in host memory: {memory}.")
        transfer = Transfer("host")
        self._snapshots = [Snapshot(trainer, pl_module, owner, transfer) for _ in range(population)]

    def keep(self, member: int) -> None:
        """Copy what is in the trainer: that is `member` now."""
        self._snapshots[member].capture()
        self._snapshots[member].wait()

    def put_in(self, member: int) -> None:
        """Copy `member` into the trainer, while the run goes on."""
        self._snapshots[member].exchange()

    def state_dict(self, without: int | None) -> list[dict[str, Any] | None]:
        """Copies of all members, but for one whose state is in the checkpoint as it is."""
        return [None if member == without else snapshot.state_dict() for member, snapshot in enumerate(self._snapshots)]

    def load_state_dict(self, states: list[dict[str, Any] | None]) -> None:
        """Take up the members, and for one that was left out what is in the trainer.

        Raises:
            ValueError: If they are not of this model; or another error if they are damaged.
        """
        for member, (snapshot, state) in enumerate(zip(self._snapshots, states, strict=True)):
            if state is None:
                self.keep(member)
            else:
                snapshot.load_state_dict(state)
