# SPDX-License-Identifier: Apache-2.0
"""Resume in the middle of an epoch as if nothing had happened.

A Lightning checkpoint holds no random state, and a plain `DataLoader` begins its epoch again. So the guard keeps

    now:       the random state at the checkpoint
    epoch:     the random state before the epoch's iterator was made (it decides the order of the data)
    position:  how many batches of the epoch had been used

and on resume makes the iterator from `epoch`, passes over `position` batches, and goes on from `now`.
"""

from typing import Any

import torch.distributed as dist
from lightning.pytorch import Trainer
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_stable._lightning import data_fetcher, progress
from lightning_stable.guard.random_state import RandomState


class ExactResume:
    """Keeps and restores the place in the data and the random state.

    Data that draws on workers' own random state, or an `IterableDataset` that is not deterministic, is out of reach.
    Loaders with `state_dict` and `load_state_dict` are left to Lightning.

    Example:
        >>> ExactResume().state_dict(trainer=None)["position"]
        0
    """

    def __init__(self) -> None:
        self._epoch: RandomState | None = None
        self._loaded: dict[str, Any] | None = None
        self._epoch_over = True
        self._too_early = False

    def setup(self, trainer: Trainer) -> None:
        """Be there when the first iterator is made."""
        data_fetcher.before_first_iteration(trainer, lambda: self._before_first_iterator(trainer))

    def teardown(self, trainer: Trainer) -> None:
        """Leave the trainer as it was found."""
        data_fetcher.forget_before_first_iteration(trainer)

    def before_epoch(self) -> None:
        """An iterator over the training data is about to be made."""
        if self._loaded is not None:  # resumed between two epochs: Lightning had made an iterator too many
            self._loaded["now"].restore()
            self._loaded = None
        self._epoch = RandomState()
        self._epoch_over = False

    def settle(self) -> None:
        """A batch has been fetched: whatever was to be resumed has been."""
        self._loaded = None

    def end_epoch(self) -> None:
        """All batches of the epoch have been used."""
        self._epoch_over = True

    def on_train_start(self, trainer: Trainer) -> None:
        """Pass over what was used before the checkpoint, and go on from its random state."""
        if self._too_early:
            data_fetcher.make_loaders_again(trainer)
        if self._loaded is None or self._loaded["position"] == 0:
            return
        position = self._loaded["position"]
        if not data_fetcher.loaders_resume_by_themselves(trainer):
            rank_zero_info(
                f"SpikeGuard: passing over {position} batches to the place of the checkpoint. What Lightning says of"
                " loaders that are not resumable does not hold for this run."
            )
            data_fetcher.pass_over_batches(trainer, position)
        self._loaded["now"].restore()
        self._loaded = None

    def state_dict(self, trainer: Trainer | None) -> dict[str, Any]:
        """The place in the data and the random state, as they are now."""
        mid_epoch = trainer is not None and not self._epoch_over and not progress.is_last_batch(trainer)
        position = progress.batches_into_epoch(trainer) if trainer is not None and mid_epoch else 0
        return {
            "position": position,
            "now": RandomState().state_dict(),
            "epoch": None if self._epoch is None else self._epoch.state_dict(),
        }

    def of_all_ranks(self, trainer: Trainer) -> dict[str, Any]:
        """`state_dict` with the random states of every rank; each of them must call this."""
        own = self.state_dict(trainer)
        states: list[Any] = [None] * trainer.world_size
        dist.all_gather_object(states, {"now": own["now"], "epoch": own["epoch"]})
        return {"position": own["position"], "ranks": states}

    def load_state_dict(self, state_dict: dict[str, Any], trainer: Trainer | None) -> None:
        """Take up `state_dict` when the data is there; of several ranks' states, that of this rank."""
        state = state_dict
        if "ranks" in state_dict:
            ranks, rank = state_dict["ranks"], 0 if trainer is None else trainer.global_rank
            if trainer is not None and trainer.world_size != len(ranks):
                rank_zero_warn(
                    f"This checkpoint is of a run on {len(ranks)} ranks, and the Trainer has {trainer.world_size}:"
                    " random numbers and data will not be those of a run that was not interrupted."
                )
            state = ranks[rank % len(ranks)]
        self._loaded = {
            "position": state_dict["position"],
            "now": RandomState.from_state_dict(state["now"]),
            "epoch": None if state["epoch"] is None else RandomState.from_state_dict(state["epoch"]),
        }

    def _before_first_iterator(self, trainer: Trainer) -> None:
        # a `configure_optimizers` that asks for `estimated_stepping_batches` has the loaders made before the counters
        # of the checkpoint are back, and Lightning then never gives the loaders their state
        self._too_early = self._loaded is not None and not progress.has_begun(trainer)
        if self._loaded is not None:
            at = "epoch" if self._loaded["position"] else "now"
            if self._loaded[at] is not None:
                self._loaded[at].restore()
            data_fetcher.set_sampler_epochs(trainer)
        self._epoch = RandomState()
        self._epoch_over = False
