# SPDX-License-Identifier: Apache-2.0
"""Batches that are passed over go through the loop, and leave no trace."""

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint
from torch.utils.data import DataLoader

from lightning_stable._lightning.passed_over import PassedOver
from lightning_stable.guard import SkipData, SkipStep
from tests.faulty_runs import ManualNet, Net, assert_same, make_batches, run
from tests.guard.resume.test_exact_resume import comparable
from tests.guard.test_recovery import DrawnOrder, Noisy, Stream, averaged_weights
from tests.guard.test_rollback import rules
from tests.guard.test_spike_guard import COUNT, TakesAnIterator, guard, without


@pytest.mark.parametrize("name", ["automatic_optimization", "manual_optimization"])
def test_the_epoch_loop_still_has_it(name):
    loop = getattr(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit_loop.epoch_loop, name)
    assert callable(loop.run)
    assert "run" not in vars(loop)


def test_the_trainer_is_left_as_it_was_found():
    trainer = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False)
    loop = trainer.fit_loop.epoch_loop
    passed_over = PassedOver(trainer)
    assert "run" in vars(loop.automatic_optimization)
    passed_over.detach()
    assert "run" not in vars(loop.automatic_optimization)
    assert "run" not in vars(loop.manual_optimization)


class Records(Callback):
    def __init__(self):
        self.started, self.outputs, self.validated_at, self.steps = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.started.append(batch_idx)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.outputs.append(float(outputs["loss"]))
        self.steps.append(trainer.global_step)

    def on_validation_start(self, trainer, pl_module):
        self.validated_at.append(trainer.fit_loop.epoch_loop.batch_idx)


def test_batches_that_are_passed_over_are_counted_and_not_trained_on():
    trained = []

    class Trains(Net):
        def training_step(self, batch, batch_idx):
            trained.append(batch_idx)
            return super().training_step(batch, batch_idx)

    records = Records()
    guarded = guard(SkipData(batches=4), snapshot_every=2)
    run(make_batches(COUNT, {5}), [guarded, records], model=Trains, epochs=2, val_check_interval=3)
    assert records.started == [*range(COUNT)] * 2
    assert trained == [0, 1, 2, 3, 4, 5, 10, 11] * 2
    losses = records.outputs[:COUNT]
    assert losses[6:10] == [losses[4]] * 4  # the latest finite one; batch 5 has its own
    assert len(set(losses)) == len(set(trained))
    assert records.validated_at == [2, 5, 8, 11] * 2
    assert records.steps[:COUNT] == [1, 2, 3, 4, 5, 4, 4, 4, 4, 4, 5, 6]
    assert [incident.batches_passed_over for incident in guarded.incidents] == [4, 4]


@pytest.mark.parametrize(
    ("loader", "bad"),
    [
        *((loader, bad) for loader in ("stream", "two workers", "drawn") for bad in ({0}, {5}, {9}, {11})),
        *(("noisy", bad) for bad in ({5}, {9}, {11})),  # what an epoch's first fetch has drawn is not given back
    ],
)
def test_any_loader_can_be_passed_over(monkeypatch, loader, bad):
    response = SkipData(batches=3, times=99)
    left_out, _ = rules(COUNT, bad, response, 1, 1, 2)
    arguments = {"epochs": 1, "num_workers": 2 if loader == "two workers" else 0}
    if loader in ("stream", "noisy"):
        monkeypatch.setattr("tests.faulty_runs.Batches", {"stream": Stream, "noisy": Noisy}[loader])
    if loader == "drawn":
        check_drawn_order(monkeypatch, bad, response)
        return
    guarded = guard(response, snapshot_every=1)
    actual = run(make_batches(COUNT, bad), [guarded], **arguments)
    assert_same(actual, run(without(make_batches(COUNT), left_out), **arguments))


def check_drawn_order(monkeypatch, bad, response):
    order = []

    class Seen(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            order.append(next(i for i, one in enumerate(make_batches(COUNT)) if torch.equal(one["y"], batch["y"])))

    def shuffled(left_out):
        def loader(dataset, **arguments):
            sampler = None if len(dataset) == 3 else DrawnOrder(left_out)
            return DataLoader(dataset, batch_size=None, sampler=sampler)

        return loader

    monkeypatch.setattr("tests.faulty_runs.DataLoader", shuffled(set()))
    actual = run(make_batches(COUNT, bad), [guard(response, snapshot_every=1), Seen()], epochs=1)
    at = next(place for place, index in enumerate(order) if index in bad)
    monkeypatch.setattr("tests.faulty_runs.DataLoader", shuffled(set(order[at : at + 4])))
    assert_same(actual, run(make_batches(COUNT), epochs=1))


def test_a_stream_that_ends_meanwhile_ends_the_epoch_and_the_next_one_begins_afresh(monkeypatch):
    monkeypatch.setattr("tests.faulty_runs.Batches", Stream)
    guarded = guard(SkipData(batches=50, times=9), snapshot_every=1, forgive_after=1)
    records = Records()
    actual = run(make_batches(COUNT, {9}), [guarded, records], epochs=2)
    assert_same(actual, run(without(make_batches(COUNT), {9, 10, 11}), epochs=2))
    assert records.started == [*range(COUNT)] * 2


class FetchesAndLogs(TakesAnIterator):
    def log(self, *args, **kwargs):
        super().log(*args, **{**kwargs, "batch_size": 4})


@pytest.mark.filterwarnings("ignore:.*dataloader_iter.*", "ignore:.*The first argument of.*")
def test_a_step_that_fetches_for_itself_can_be_passed_over():
    guarded = guard(SkipData(batches=3), snapshot_every=1)
    actual = run(make_batches(COUNT, {5}), [guarded], model=FetchesAndLogs, epochs=1)
    assert_same(actual, run(without(make_batches(COUNT), {5, 6, 7, 8}), model=FetchesAndLogs, epochs=1))


class EveryOther(ManualNet):
    """Accumulates two batches by hand."""

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()
        loss = torch.nn.functional.mse_loss(self(batch["x"]), batch["y"])
        self.manual_backward(loss)
        if batch_idx % 2:
            optimizer.step()
            optimizer.zero_grad()


def test_whole_windows_are_passed_over_in_manual_optimization_too():
    guarded = guard(SkipData(batches=3), snapshot_every=1)
    actual = run(make_batches(COUNT, {5}), [guarded], model=EveryOther, epochs=1)
    (incident,) = guarded.incidents
    assert incident.batches == [4, 5]
    assert incident.batches_passed_over == 4
    expected = run(without(make_batches(COUNT), {4, 5, 6, 7, 8, 9}), model=EveryOther, epochs=1)
    assert_same(actual.weights, expected.weights)
    assert_same(actual.optimizers, expected.optimizers)


def test_an_average_of_the_weights_does_not_see_them():
    actual, expected = [], []
    guarded = guard(SkipData(batches=3), snapshot_every=2)
    average = EMAWeightAveraging(decay=0.9)
    run(make_batches(COUNT, {5}), [guarded, average], after=averaged_weights(actual), epochs=1)
    left_out = {4, 5, 6, 7, 8}
    average = EMAWeightAveraging(decay=0.9)
    run(without(make_batches(COUNT), left_out), [average], after=averaged_weights(expected), epochs=1)
    assert_same(actual, expected)


def test_nothing_is_saved_meanwhile(tmp_path):
    class Saved(Callback):
        def __init__(self):
            self.at = []

        def on_save_checkpoint(self, trainer, pl_module, checkpoint):
            self.at.append(trainer.fit_loop.epoch_loop.batch_idx)

    saved = Saved()
    checkpoint = ModelCheckpoint(dirpath=tmp_path, every_n_train_steps=1, save_top_k=-1)
    guarded = guard(SkipData(batches=3), snapshot_every=2)
    run(make_batches(COUNT, {5}), [guarded, saved, checkpoint], enable_checkpointing=True, epochs=1)
    assert saved.at == [0, 1, 2, 3, 4, 9, 10, 11]


class SaveAt(Callback):
    """A checkpoint after the `at`-th batch."""

    def __init__(self, path, at):
        self.path, self.at = path, at

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.at:
            trainer.save_checkpoint(self.path)


@pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")
@pytest.mark.parametrize("a_window", [1, 2])
@pytest.mark.parametrize("at", [5, 7, 9])  # right after the rollback, while batches are passed over, in their middle
def test_a_resumed_run_goes_on_passing_over(tmp_path, at, a_window):
    def made():
        return guard(SkipData(batches=5, times=9), SkipStep(), snapshot_every=2, cooldown=3)

    arguments = {"accumulate_grad_batches": a_window}
    path = tmp_path / "middle.ckpt"
    batches = make_batches(20, {3})
    whole = made()
    expected = run(batches, [whole], **arguments)
    run(batches, [made(), SaveAt(path, at)], max_epochs=1, **{**arguments, "epochs": 1})
    state = torch.load(path, weights_only=True)["callbacks"]["SpikeGuard"]["passed_over"]
    assert (state["wanted"] > state["done"]) == (at < 9)
    resumed = made()
    actual = run(batches, [resumed], ckpt_path=path, **arguments)
    assert_same(comparable(actual), comparable(expected))
    assert [str(one) for one in resumed.incidents] == [str(one) for one in whole.incidents]
    assert resumed._ladder.state_dict() == whole._ladder.state_dict()
