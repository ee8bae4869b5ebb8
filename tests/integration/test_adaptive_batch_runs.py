# SPDX-License-Identifier: Apache-2.0
"""`AdaptiveBatchSize` with loaders that grow, in resumed runs, and beside the guard."""

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_stable.callbacks import AdaptiveBatchSize
from lightning_stable.guard import Rollback, SkipStep, SpikeGuard
from tests.callbacks.noisy_runs import (
    EAGER,
    Data,
    Noisy,
    Probe,
    counting,
    fit,
    linear,
    loader_grown,
    one_cycle,
    samples,
)

# The loader


def test_the_loader_grows_between_epochs_once_accumulation_has_come_to_its_end():
    data = Data()
    callback, probe, trainer = loader_grown(data, model=Noisy(counting))
    assert set(probe.accumulated) <= {1, 2}
    assert probe.sizes[:50] == [4] * 50  # the first epoch
    sizes = list(dict.fromkeys(probe.sizes[50:]))
    assert sizes[:3] == [8, 16, 32] or sizes[0] == 8
    assert max(probe.sizes) == 32  # a multiple of 4 that is at most 35
    assert callback.batch_size == 64
    assert data.batch_size == 4  # as it was found
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.position == 300
    assert scheduler.get_last_lr() == [0.0]


@pytest.mark.parametrize("settings", [{"count": 203}, {"count": 203, "drop_last": True}], ids=str)
def test_schedules_end_with_the_data_also_where_epochs_end_in_a_smaller_batch(settings):
    _, _, trainer = loader_grown(Data(**settings), model=Noisy(counting))
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert scheduler.position == scheduler.total_steps


@pytest.mark.parametrize("limit", [12, 40])
@pytest.mark.parametrize("schedule", [counting, one_cycle])
def test_schedules_end_with_the_run_also_where_an_epoch_keeps_its_number_of_batches(schedule, limit):
    settings = {"max_accumulation": 1, "limit_train_batches": limit, "max_loader_batch_size": 8}
    _, probe, trainer = loader_grown(Data(), model=Noisy(schedule), max_epochs=5, **settings)
    assert 8 in probe.sizes
    scheduler = trainer.lr_scheduler_configs[0].scheduler
    assert (scheduler.position if schedule is counting else scheduler.last_epoch) == 5 * limit
    if limit == 12 and schedule is counting:
        assert probe.rates == sorted(set(probe.rates), reverse=True)  # it never stands still


def test_the_cap_holds_for_the_loader_too():
    callback, probe, _ = loader_grown(Data(), max_batch_size=30)
    assert max(probe.sizes) == 12
    assert callback.batch_size == 24


def test_a_loader_that_does_not_grow_is_an_error():
    with pytest.raises(RuntimeError, match=r"has set `batch_size` to 8, but the loader's batches still have 4 samples"):
        loader_grown(Data(fixed=True))


def test_a_resumed_run_has_the_loader_that_it_was_saved_with(tmp_path):
    class Save(Probe):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 2:
                trainer.save_checkpoint(tmp_path / "last.ckpt")

    straight = Noisy()
    _, probe, _ = loader_grown(Data(), straight, probe=Save())
    resumed = Noisy()
    _, again, _ = loader_grown(Data(), resumed, ckpt_path=tmp_path / "last.ckpt")
    assert torch.equal(straight.weight, resumed.weight)
    assert again.sizes == probe.sizes[-len(again.sizes) :]
    assert again.sizes[0] > 4


class Uneven(Data):
    """Batches of three halves and of half the size, the small ones first."""

    def train_dataloader(self):
        small = self.batch_size // 2
        starts = range(0, 200, 4 * small)
        both = [
            part for start in starts for part in (range(start, start + small), range(start + small, start + 4 * small))
        ]
        return DataLoader(samples(264), batch_sampler=both)


def test_a_loader_with_batches_of_several_sizes_grows_too():
    _, probe, _ = loader_grown(Uneven())
    assert probe.sizes[:2] == [2, 6]
    assert probe.sizes[-2:] == [16, 48]


class Module(Noisy):
    """Makes its loader from its `hparams`."""

    def __init__(self, batch_size=4):
        super().__init__()
        self.save_hyperparameters()

    def train_dataloader(self):
        return DataLoader(samples(200), batch_size=self.hparams.batch_size)

    validation_step = Noisy.training_step

    def val_dataloader(self):
        return DataLoader(samples(8), batch_size=4)


class SaveLarger(Probe):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_train_epoch_end(self, trainer, pl_module):
        if trainer.current_epoch == 2:
            assert pl_module.hparams.batch_size > 4
            trainer.save_checkpoint(self.path)


def test_a_module_that_is_loaded_from_a_checkpoint_with_its_larger_loader_is_resumed(tmp_path):
    straight = Module()
    _, probe, _ = loader_grown(None, straight, probe=SaveLarger(tmp_path / "last.ckpt"))
    resumed = Module.load_from_checkpoint(tmp_path / "last.ckpt")
    _, again, _ = loader_grown(None, resumed, ckpt_path=tmp_path / "last.ckpt")
    assert again.sizes == probe.sizes[-len(again.sizes) :]
    assert torch.equal(straight.weight, resumed.weight)
    assert straight.hparams.batch_size == resumed.hparams.batch_size == 4


def test_a_resume_that_fails_before_training_leaves_the_batch_size_as_it_was(tmp_path):
    loader_grown(None, Module(), probe=SaveLarger(tmp_path / "last.ckpt"))
    model = Module()
    model.validation_step = lambda batch, batch_idx: 1 / 0
    with pytest.raises(ZeroDivisionError):  # in the sanity check
        loader_grown(None, model, ckpt_path=tmp_path / "last.ckpt")
    assert model.hparams.batch_size == 4


# The checkpoint and the guard


class Save(Probe):
    def __init__(self, folder, steps):
        super().__init__()
        self.folder, self.steps, self.batches = folder, steps, {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step in self.steps and trainer.global_step not in self.batches:
            self.batches[trainer.global_step] = batch_idx + 1
            trainer.save_checkpoint(self.folder / f"{trainer.global_step}.ckpt")


@pytest.mark.parametrize("schedule", [None, counting, linear])
@pytest.mark.parametrize("test", ["norm", "orthogonality"])
def test_a_run_that_is_resumed_in_mid_epoch_equals_one_that_was_not_interrupted(tmp_path, test, schedule):
    data, arguments = samples(400), {**EAGER, "eta": 0.1, "test": test, "scale_lr": "sqrt", "every_n_steps": 2}
    straight, save = Noisy(schedule), Save(tmp_path, (3, 8, 14))
    callback = AdaptiveBatchSize(**arguments)
    fit(callback, save, data=data, model=straight)
    assert len(save.batches) == 3
    assert len(set(save.accumulated)) > 3
    for step, batches in save.batches.items():
        resumed, again = Noisy(schedule), AdaptiveBatchSize(**arguments)
        rest = data.roll(-4 * batches, 0)
        trainer = fit(again, data=rest, model=resumed, ckpt_path=tmp_path / f"{step}.ckpt")
        assert torch.equal(straight.weight, resumed.weight)
        assert again.state_dict() == callback.state_dict()
        assert trainer.accumulate_grad_batches == 1


def spoiled(data, batches):
    data = data.clone()
    for batch in batches:
        data[4 * batch : 4 * batch + 4] = torch.nan
    return data


@pytest.mark.parametrize("order", ["guard first", "guard last"])
@pytest.mark.parametrize(
    ("response", "snapshot_every"),
    [(SkipStep(times=99), 3), (Rollback(times=99, mode="replay"), 3), (Rollback(times=99, mode="skip"), 1)],
    ids=["skip", "replay", "rollback"],
)
def test_a_guarded_run_equals_one_whose_loader_never_held_the_bad_batches(tmp_path, order, response, snapshot_every):
    good, arguments = samples(400), {**EAGER, "eta": 0.1, "scale_lr": "linear", "every_n_steps": 2}
    plain, found = Noisy(linear_of(100)), Probe()
    fit(AdaptiveBatchSize(**arguments), found, data=good, model=plain)
    assert len(set(found.accumulated)) > 3
    starts = [sum(found.accumulated[:step]) for step in range(len(found.accumulated))]
    windows = [(starts[step], found.accumulated[step]) for step in (2, 7, 11)]
    rows, bad = [], torch.full_like(good[:4], torch.nan)
    for batch in range(100):
        for start, length in windows:
            if start == batch:
                rows += [bad] * length  # a whole window, before the good one
        rows.append(good[4 * batch : 4 * batch + 4])
    guarded, callback = Noisy(linear_of(100)), AdaptiveBatchSize(**arguments)
    guard = SpikeGuard(ladder=[response], snapshot_every=snapshot_every, warn={}, watch={}, forgive_after=1)
    callbacks = [guard, callback] if order == "guard first" else [callback, guard]
    probe = Probe()
    trainer = fit(*callbacks, probe, data=torch.cat(rows), model=guarded, default_root_dir=tmp_path)
    assert len(guard.incidents) == 3
    assert torch.equal(plain.weight, guarded.weight)
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 100


def linear_of(total):
    def schedule(optimizer, trainer):
        return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / (total + 1))

    return schedule
