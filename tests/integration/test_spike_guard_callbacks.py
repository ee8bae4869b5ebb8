# SPDX-License-Identifier: Apache-2.0
"""The guard beside Lightning's own callbacks and schedules: none of them learns of a step that was undone."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import (
    EarlyStopping,
    EMAWeightAveraging,
    ModelCheckpoint,
    OnExceptionCheckpoint,
    StochasticWeightAveraging,
    WeightAveraging,
)
from torch import nn

from lightning_stable.guard import Halt, Rollback, SkipStep, SpikeGuard, TrainingHalted
from tests.faulty_runs import Net, assert_same, make_batches, run
from tests.guard.resume.test_exact_resume import comparable
from tests.guard.test_spike_guard import guard, without

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*callbacks used to create the checkpoint need to be provided.*",
    r"ignore:`.fit\(ckpt_path=None\)` was called without a model",  # both are said
    r"ignore:.fit\(ckpt_path=.last.\) is set, but there is no last",  # where there is an `OnExceptionCheckpoint`
)

COUNT = 12
RESPONSES = {
    "skip": lambda: SkipStep(times=99),
    "replay": lambda: Rollback(mode="replay", times=99),
    "roll back": lambda: Rollback(times=99),
}
BAD = [{0}, {5}, {4, 6}, {COUNT - 1}]


def left_out(bad, response, every=4):
    """Of an epoch: `skip` and `replay` lose the bad batches, `roll back` what came since the snapshot, too."""
    if response != "roll back":
        return bad
    lost, since = set(), []
    for index in range(COUNT):
        since = [] if len(since) == every else since
        since.append(index)
        if index in bad:
            lost |= set(since)
            since = []
    return lost


@pytest.fixture(params=RESPONSES)
def response(request):
    return request.param


@pytest.fixture(params=BAD, ids=str)
def bad(request):
    return request.param


# Schedules


class Plateau(Net):
    def __init__(self, **config):
        super().__init__()
        self.config = config

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=1e-2)
        schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, factor=0.5, patience=1)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, **self.config}}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize(
    "config",
    [
        {"interval": "step", "monitor": "train_loss_step"},
        {"interval": "epoch", "monitor": "train_loss"},
        {"interval": "epoch", "monitor": "val_loss"},
    ],
    ids=lambda config: config["monitor"],
)
@pytest.mark.parametrize("how", ["skip", "replay"])
def test_a_plateau_is_one_of_steps_that_happened(config, how, bad, accumulate):
    """Lightning steps it behind every hook of the batch, and in the first step would find nothing to monitor."""
    arguments = {"model": lambda: Plateau(**config), "accumulate_grad_batches": accumulate}
    windows = {index // accumulate * accumulate + one for index in bad for one in range(accumulate)}
    actual = run(make_batches(COUNT, bad), [guard(RESPONSES[how](), snapshot_every=4)], **arguments)
    assert_same(actual, run(without(make_batches(COUNT), windows), **arguments))
    assert "update_lr_schedulers" not in vars(actual.trainer.fit_loop.epoch_loop)


@pytest.mark.parametrize(("bad", "steps"), [({}, 6), ({4}, 6), ({5}, 5)])
def test_the_frequency_of_a_schedule_counts_batches_that_were_left_out_too(bad, steps):
    """Lightning steps it by the index of the batch: here in every second one, unless that one is undone."""

    class EverySecondBatch(Net):
        def configure_optimizers(self):
            [optimizer], [config] = super().configure_optimizers()
            return [optimizer], [{**config, "frequency": 2}]

    outcome = run(make_batches(COUNT, bad), [guard(SkipStep())], model=EverySecondBatch, epochs=1)
    assert outcome.schedules[0]["last_epoch"] == steps


def test_a_run_that_halts_leaves_the_schedules_to_the_next_one():
    kept = []

    class Keeps(Callback):
        def on_exception(self, trainer, pl_module, exception):
            kept.append(vars(trainer.fit_loop.epoch_loop).keys())

    with pytest.raises(TrainingHalted):
        run(make_batches(COUNT, {5}), [SpikeGuard(ladder=[Halt()]), Keeps()])
    assert "update_lr_schedulers" not in kept[0]


# Averages


class WithoutBatchNorm(Net):
    def __init__(self):
        super().__init__(epoch_schedule=True)
        self.layers[1] = nn.LayerNorm(16)


AVERAGES = {
    "SWA": partial(StochasticWeightAveraging, swa_lrs=0.01, swa_epoch_start=2),
    "EMA with buffers": partial(EMAWeightAveraging, decay=0.9, use_buffers=True),
    "EMA now and then": partial(EMAWeightAveraging, decay=0.9, update_every_n_steps=2, update_starting_at_step=3),
    "mean": WeightAveraging,
}


def average(into):
    return lambda trainer: into.extend(
        value.clone() for value in trainer.callbacks[-1]._average_model.state_dict().values()
    )


@pytest.mark.parametrize("name", AVERAGES)
def test_an_average_never_saw_the_step(name, response, bad):
    seen, expected = [], []
    arguments = {"model": WithoutBatchNorm, "epochs": 3}
    guarded = guard(RESPONSES[response](), snapshot_every=4)
    actual = run(make_batches(COUNT, bad), [guarded, AVERAGES[name]()], after=average(seen), **arguments)
    clean = without(make_batches(COUNT), left_out(bad, response))
    assert_same(actual, run(clean, [AVERAGES[name]()], after=average(expected), **arguments))
    assert seen
    assert_same(seen, expected)


def test_the_pass_in_which_swa_renews_batch_norm_is_not_guarded_and_the_weights_are_still_good():
    """There is no backward pass in it, and nothing to veto."""
    arguments = {"model": lambda: Net(epoch_schedule=True), "epochs": 3}
    guarded = guard(SkipStep(times=99))
    actual = run(make_batches(COUNT, {5}), [guarded, AVERAGES["SWA"]()], **arguments)
    expected = run(without(make_batches(COUNT), {5}), [AVERAGES["SWA"]()], **arguments)
    assert_same(actual.weights, expected.weights)
    assert len(guarded.incidents) == 3  # not in the fourth pass over the data
    assert not all(buffer.isfinite().all() for buffer in actual.buffers)


# Stopping and saving


def test_stopping_early_is_decided_by_steps_that_happened(response, bad):
    def stops():
        return EarlyStopping("train_loss", patience=1, min_delta=0.05, check_on_train_epoch_end=True)

    guarded = guard(RESPONSES[response](), snapshot_every=4)
    actual = run(make_batches(COUNT, bad), [guarded, stops()], epochs=9)
    expected = run(without(make_batches(COUNT), left_out(bad, response)), [stops()], epochs=9)
    assert_same(actual, expected)
    assert actual.trainer.current_epoch < 9


def saved(folder, batches, *callbacks, **arguments):
    """What `ModelCheckpoint` has written: by the name of the file, and which of them is the best."""
    last = {"save_last": True, "every_n_train_steps": 1, "save_top_k": 3, "monitor": "train_loss_step"}
    checkpoint = ModelCheckpoint(folder, filename="{step}", **{**last, **arguments})
    run(batches, [*callbacks, checkpoint], enable_checkpointing=True)
    weights = {path.name: torch.load(path, weights_only=True)["state_dict"] for path in folder.iterdir()}
    return weights, (folder / checkpoint.best_model_path).name, checkpoint.best_model_score


@pytest.mark.parametrize("how", ["nan", "huge"])
@pytest.mark.parametrize("mode", ["min", "max"])
def test_the_best_and_the_last_checkpoint_are_those_of_the_run_without_the_spike(tmp_path, mode, how):
    bad = {7, COUNT - 1}
    spoilt = saved(tmp_path / "bad", make_batches(COUNT, bad, how), guard(RESPONSES["skip"]()), mode=mode)
    assert_same(spoilt, saved(tmp_path / "clean", without(make_batches(COUNT), bad), mode=mode))


@pytest.mark.parametrize("every", [1, 2, 5])
def test_no_step_is_saved_by_a_rollback_that_would_not_have_been_saved_without(tmp_path, every):
    """Those it has undone were saved when they still counted, and stay."""
    arguments = {"monitor": None, "save_top_k": -1, "every_n_train_steps": every}
    replay = guard(Rollback(mode="replay", times=99), snapshot_every=4)
    spoilt, *_ = saved(tmp_path / "bad", make_batches(COUNT, {7}), replay, **arguments)
    clean, *_ = saved(tmp_path / "clean", without(make_batches(COUNT), {7}), **arguments)
    assert_same(spoilt, clean)


# A run that ends in the middle of a bad step


class Interrupted(Exception):
    """By whom or what does not matter."""


class InterruptIn(Callback):
    def __init__(self, hook, at, kind=Interrupted):
        self.at, self.kind, self.seen = at, kind, -1
        setattr(self, hook, self._interrupt)

    def setup(self, trainer, pl_module, stage):
        self.seen = -1

    def on_train_batch_start(self, *_):
        self.seen += 1

    def _interrupt(self, *_):
        if self.seen == self.at:
            raise self.kind


class Keeps(OnExceptionCheckpoint):
    """Lightning takes it away once the run has been torn down."""

    def teardown(self, *_, **__):
        pass


KEEPERS = {
    "OnExceptionCheckpoint": Keeps,
    "ModelCheckpoint": lambda folder: ModelCheckpoint(folder, filename="on_exception", save_on_exception=True),
}


def broken_off(folder, bad, callbacks, **arguments):
    kept = folder / "on_exception.ckpt"
    with pytest.raises((Interrupted, TrainingHalted, SystemExit)):
        run(make_batches(COUNT, bad), callbacks, enable_checkpointing=True, **arguments)
    state = torch.load(kept, weights_only=True)["state_dict"]
    assert all(value.isfinite().all() for value in state.values())
    return kept


@pytest.mark.parametrize("place", ["before the guard", "behind the guard"])
@pytest.mark.parametrize(
    "hook", ["on_before_backward", "on_after_backward", "on_before_optimizer_step", "on_train_batch_end"]
)
@pytest.mark.parametrize("at", [0, 5, COUNT - 1, COUNT])
def test_what_is_saved_when_a_run_breaks_off_is_the_last_good_step_and_goes_on_from_there(tmp_path, hook, place, at):
    """Every batch is bad now and then, so that the one at which it breaks off may be as well as not."""
    bad = {0, 1, 3, 4, 6, 10}
    others = [guard(SkipStep(times=99)), InterruptIn(hook, at)]
    others = others if place == "behind the guard" else others[::-1]
    arguments = {"shuffle": True, "epochs": 3}
    kept = broken_off(tmp_path, bad, [*others, Keeps(tmp_path)], **arguments)
    resumed = run(make_batches(COUNT, bad), [guard(SkipStep(times=99))], ckpt_path=kept, **arguments)
    expected = run(make_batches(COUNT, bad), [guard(SkipStep(times=99))], **arguments)
    assert_same(comparable(resumed), comparable(expected))


@pytest.mark.parametrize("keeper", KEEPERS)
@pytest.mark.parametrize("kind", [Interrupted, KeyboardInterrupt])
@pytest.mark.parametrize("hook", ["on_before_backward", "on_train_batch_end"])
def test_nothing_bad_is_saved_whoever_saves_and_whatever_ends_the_run(tmp_path, keeper, kind, hook):
    callbacks = [InterruptIn(hook, 5, kind), guard(SkipStep(times=99)), KEEPERS[keeper](tmp_path)]
    broken_off(tmp_path, set(range(3, COUNT)), callbacks)


@pytest.mark.parametrize("keeper", KEEPERS)
def test_a_halted_run_leaves_a_checkpoint_of_its_last_good_step(tmp_path, keeper):
    batches, bad = make_batches(COUNT), {5, 6}
    halting = [guard(SkipStep(times=1)), KEEPERS[keeper](tmp_path)]
    with pytest.raises(TrainingHalted):
        run(make_batches(COUNT, bad), halting, enable_checkpointing=True)
    state = torch.load(tmp_path / "on_exception.ckpt", weights_only=True)["state_dict"]
    expected = run(batches[:5], epochs=1)
    assert_same({name: state[name] for name in expected.weights}, expected.weights)
    assert all(value.isfinite().all() for value in state.values())


def test_a_run_that_breaks_off_while_batches_are_passed_over_goes_on_passing_over(tmp_path):
    def callbacks():
        return guard(Rollback(times=99, escalate=4), snapshot_every=3, forgive_after=None)

    arguments = {"shuffle": True, "epochs": 3}
    whole = callbacks()
    expected = run(make_batches(COUNT, {3, 4}), [whole], **arguments)
    at = 1 + next(one.batches[-1] for one in whole.incidents if one.batches_passed_over > 2)
    kept = broken_off(
        tmp_path, {3, 4}, [callbacks(), InterruptIn("on_train_batch_end", at + 1), Keeps(tmp_path)], **arguments
    )
    resumed = run(make_batches(COUNT, {3, 4}), [callbacks()], ckpt_path=kept, **arguments)
    assert_same(comparable(resumed), comparable(expected))
