# SPDX-License-Identifier: Apache-2.0
"""The private counters of Lightning that this pack reads and writes; each by name."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer

from lightning_stable._lightning import progress
from tests.faulty_runs import Net, make_batches, run


@pytest.mark.parametrize(
    "path",
    [
        "fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.step.total.completed",
        "fit_loop.epoch_loop.automatic_optimization.optim_progress.optimizer.zero_grad.current.ready",
        "fit_loop.epoch_loop.manual_optimization.optim_step_progress.total.completed",
        "fit_loop.epoch_loop.scheduler_progress.total.completed",
        "fit_loop.epoch_loop.batch_progress.current.processed",
        "fit_loop.epoch_loop.batch_progress.total.ready",
        "fit_loop.epoch_loop.batch_progress.current.ready",
        "fit_loop.epoch_loop.batch_progress.is_last_batch",
        "fit_loop.epoch_loop._skip_next_val",
        "fit_loop.epoch_loop._num_ready_batches_reached",
        "fit_loop.epoch_loop._should_accumulate",
        "fit_loop.epoch_loop.update_lr_schedulers",
    ],
)
def test_lightning_still_has_it(path):
    owner = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    for name in path.split("."):
        owner = getattr(owner, name)


class Probe(Callback):
    def __init__(self):
        self.rewound = False
        self.indices, self.begun, self.steps, self.last = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.indices.append(batch_idx)
        self.begun.append(progress.batches_begun(trainer))
        if batch_idx == 1:
            self.saved = progress.model_progress(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.last.append(progress.is_last_batch(trainer))
        if batch_idx == 3 and not self.rewound:
            self.rewound = True
            assert trainer.global_step == 4
            progress.restore_model_progress(trainer, self.saved)
            assert trainer.global_step == 1
            progress.rewind_batches(trainer, 2)
        self.steps.append(trainer.global_step)


def test_batches_are_numbered_again_and_steps_counted_again():
    probe = Probe()
    run(make_batches(6), [probe], epochs=1)
    # the loader has six batches and no more, however they are numbered
    assert probe.indices == [0, 1, 2, 3, 2, 3]
    assert probe.begun == [1, 2, 3, 4, 3, 4]
    assert probe.steps == [1, 2, 3, 1, 2, 3]
    assert probe.last == [False] * 5 + [True]


class GoesBack(Callback):
    """To the counters before the last of six batches, once it is the last."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 4:
            self.saved = progress.data_progress(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 5:
            assert progress.is_last_batch(trainer)
            progress.restore_data_progress(trainer, self.saved)
            assert progress.data_progress(trainer) == self.saved
            assert (progress.batches_begun(trainer), progress.batches_into_epoch(trainer)) == (5, 4)
            assert not progress.is_last_batch(trainer)
            raise StopIteration  # the epoch is over all the same


def test_the_counters_of_batches_can_be_put_back():
    run(make_batches(6), [GoesBack()], epochs=1)


class EndsEarly(Callback):
    """Numbers the last of six batches as if it were the seventh."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 4:
            assert progress.batches_beyond_a_window(trainer, 0) == 1
            assert progress.batches_beyond_a_window(trainer, 3) == 0
        if batch_idx == 5:
            progress.end_epoch_at(trainer, 1)
            assert progress.is_last_batch(trainer)
            assert progress.batches_begun(trainer) == 7


def test_an_epoch_can_end_at_a_higher_number():
    run(make_batches(6), [EndsEarly()], epochs=1, accumulate_grad_batches=2)


@pytest.mark.parametrize(("limit", "left"), [(None, [3, 2, 1, 0]), (2, [1, 0])])
def test_how_many_batches_an_epoch_has_left(limit, left):
    seen = []

    class Left(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(progress.batches_left(trainer))

    run(make_batches(4), [Left()], limit_train_batches=limit, epochs=2)
    assert seen == left * 2


def test_the_next_batch_can_be_numbered_as_an_epochs_first():
    class BeginsAgain(Probe):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if self.begun == [1, 2, 3, 4]:
                progress.begin_epoch(trainer)

    probe = BeginsAgain()
    run(make_batches(6), [probe], epochs=1)
    assert probe.indices == [0, 1, 2, 3, 0, 1]
    assert probe.begun == [1, 2, 3, 4, 5, 6]


class UsedUp(Callback):
    def __init__(self):
        self.at_start, self.at_end = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.at_start.append((progress.is_last_batch(trainer), progress.is_epoch_used_up(trainer)))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.at_end.append((progress.is_last_batch(trainer), progress.is_epoch_used_up(trainer)))


def test_an_epoch_is_used_up_once_its_last_batch_was_processed():
    seen = UsedUp()
    run(make_batches(3), [seen], epochs=1)
    assert seen.at_start == [(False, False), (False, False), (True, False)]
    assert seen.at_end == [(False, False), (False, False), (True, True)]


class Plateau(Net):
    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer)
        return {
            "optimizer": optimizer,
            "lr_scheduler": {"scheduler": schedule, "interval": "step", "monitor": "train_loss"},
        }


@pytest.mark.parametrize(("keep", "steps"), [(False, 3), (True, 4)])
def test_one_step_of_a_plateau_can_be_left_out(keep, steps):
    class Skips(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 1:
                progress.skip_next_plateau_step(trainer)
            if keep:
                progress.keep_next_plateau_step(trainer)

    outcome = run(make_batches(4), [Skips()], model=Plateau, epochs=1)
    assert outcome.schedules[0]["last_epoch"] == steps
