# SPDX-License-Identifier: Apache-2.0
"""A resumed run is the run that was never interrupted."""

import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback, Trainer, seed_everything
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_stable._lightning import progress
from lightning_stable.guard import ClipStep, Rollback, SaveBatch, ScaleLR, SkipStep, TrainingHalted
from lightning_stable.testbeds import CharLM, Corruption, PythonTextDataModule
from tests.faulty_runs import Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import guard

# a checkpoint that knows of a `ModelCheckpoint` may be resumed without one
pytestmark = pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")

BAD = {2, 9}
ROOT = Path(__file__).parents[3]


def checkpoints(folder, **arguments):
    return ModelCheckpoint(dirpath=folder, filename="{step}", save_top_k=-1, **arguments)


def comparable(outcome):
    """What no checkpoint holds cannot come back: a non-persistent buffer, past validations, half an epoch's means."""
    outcome.buffers, outcome.val_losses, outcome.metrics = outcome.buffers[1:], [], {}
    return outcome


class DrawsAtTheStart(Callback):
    def on_train_epoch_start(self, trainer, pl_module):
        torch.rand(3)


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("step", [3, 9, 13, 25])
def test_resuming_in_the_middle_of_a_shuffled_epoch_changes_nothing(tmp_path, num_workers, step):
    arguments = {"epochs": 3, "shuffle": True, "num_workers": num_workers}
    expected = comparable(run(make_batches(12, BAD), [guard(SkipStep(times=99)), DrawsAtTheStart()], **arguments))
    first = guard(SkipStep(times=99))
    run(
        make_batches(12, BAD),
        [first, DrawsAtTheStart(), checkpoints(tmp_path, every_n_train_steps=1)],
        enable_checkpointing=True,
        max_steps=step,
        **arguments,
    )
    second = guard(SkipStep(times=99))
    callbacks, path = [second, DrawsAtTheStart()], tmp_path / f"step={step}.ckpt"
    resumed = run(make_batches(12, BAD), callbacks, ckpt_path=path, **arguments)
    assert_same(comparable(resumed), expected)
    assert len(second.incidents) == 6
    assert [str(incident) for incident in first.incidents] == [str(i) for i in second.incidents[: len(first.incidents)]]


@pytest.mark.parametrize("when", [{"every_n_epochs": 1}, {"monitor": "val_loss"}])
@pytest.mark.parametrize("num_workers", [0, 2])
def test_resuming_between_two_epochs_changes_nothing(tmp_path, when, num_workers):
    arguments = {"epochs": 3, "shuffle": True, "num_workers": num_workers}
    expected = comparable(run(make_batches(12, BAD), [guard(SkipStep(times=99))], **arguments))
    run(
        make_batches(12, BAD),
        [guard(SkipStep(times=99)), checkpoints(tmp_path, **when)],
        enable_checkpointing=True,
        **arguments,
    )
    for step in (10, 20):
        resumed = run(
            make_batches(12, BAD), [guard(SkipStep(times=99))], ckpt_path=tmp_path / f"step={step}.ckpt", **arguments
        )
        assert_same(comparable(resumed), expected)


class Fails(Callback):
    """Within a window of three."""

    def on_before_backward(self, trainer, pl_module, loss):
        if trainer.fit_loop.epoch_loop.batch_idx == 7:
            raise RuntimeError("in the middle")


def test_what_is_saved_on_an_exception_is_before_the_window_that_failed(tmp_path):
    arguments = {"epochs": 3, "shuffle": True, "accumulate_grad_batches": 3}
    expected = comparable(run(make_batches(12, BAD), [guard(SkipStep(times=99))], **arguments))
    saved = ModelCheckpoint(dirpath=tmp_path, filename="saved", every_n_epochs=99, save_on_exception=True)
    first = [guard(SkipStep(times=99)), Fails(), saved]
    with pytest.raises(RuntimeError, match="in the middle"):
        run(make_batches(12, BAD), first, enable_checkpointing=True, **arguments)
    counters = torch.load(tmp_path / "saved.ckpt", weights_only=True)["loops"]["fit_loop"]["epoch_loop.batch_progress"]
    assert set(counters["current"].values()) == {6}
    second = guard(SkipStep(times=99))
    resumed = run(make_batches(12, BAD), [second], ckpt_path=tmp_path / "saved.ckpt", **arguments)
    assert_same(comparable(resumed), expected)


def test_a_window_at_which_the_run_was_halted_is_not_before_it(tmp_path):
    """Or a run that goes on would come to the same batch again."""
    saved = ModelCheckpoint(dirpath=tmp_path, filename="saved", every_n_epochs=99, save_on_exception=True)
    with pytest.raises(TrainingHalted):
        run(make_batches(12, {5}), [guard(), saved], enable_checkpointing=True)
    checkpoint = torch.load(tmp_path / "saved.ckpt", weights_only=True)
    assert checkpoint["loops"]["fit_loop"]["epoch_loop.batch_progress"]["current"]["processed"] == 6
    assert checkpoint["callbacks"]["SpikeGuard"]["resume"]["position"] == 6


class AsksForItsLength(Net):
    """As many a module does; Lightning then makes the loaders before it restores where they were."""

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 36
        return super().configure_optimizers()


@pytest.mark.parametrize("num_workers", [0, 2])
@pytest.mark.parametrize("step", [3, 9, 11])
def test_a_module_that_asks_for_the_length_of_the_run_resumes_too(tmp_path, num_workers, step):
    arguments = {"model": AsksForItsLength, "epochs": 3, "shuffle": True, "num_workers": num_workers}
    expected = comparable(run(make_batches(12, BAD), [guard(SkipStep(times=99))], **arguments))
    callbacks = [guard(SkipStep(times=99)), checkpoints(tmp_path, every_n_train_steps=1)]
    run(make_batches(12, BAD), callbacks, enable_checkpointing=True, **arguments)
    path = tmp_path / f"step={step}.ckpt"
    resumed = run(make_batches(12, BAD), [guard(SkipStep(times=99))], ckpt_path=path, **arguments)
    assert_same(comparable(resumed), expected)


class CharLMThatAsks(CharLM):
    def __init__(self):
        super().__init__(n_layer=1, n_head=1, d_model=8, context=8)

    def configure_optimizers(self):
        assert self.trainer.estimated_stepping_batches == 16
        return super().configure_optimizers()


def train_on_a_loader_with_a_state(folder, ckpt_path=None):
    seed_everything(0, verbose=False)
    model = CharLMThatAsks()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_epochs=2,
        callbacks=[guard(SkipStep(times=99)), checkpoints(folder, every_n_train_steps=1)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    corrupt = [Corruption("nan_embedding", batches=[2, 11])]
    data = PythonTextDataModule(context=8, batch_size=2, batches_per_epoch=8, val_batches=1, corrupt=corrupt)
    trainer.fit(model, data, ckpt_path=ckpt_path)
    return trainer.callbacks[0].incidents, dict(model.state_dict())


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
@pytest.mark.parametrize("step", [2, 3, 7, 9])
def test_a_loader_with_a_state_gets_it_back_also_when_it_was_made_too_early(tmp_path, step):
    incidents, expected = train_on_a_loader_with_a_state(tmp_path / "whole")
    again, weights = train_on_a_loader_with_a_state(tmp_path / "resumed", tmp_path / "whole" / f"step={step}.ckpt")
    assert_same(weights, expected)
    assert [str(incident) for incident in again] == [str(incident) for incident in incidents]


def test_the_whole_guard_is_in_the_checkpoint_and_loads_with_weights_only(tmp_path):
    first = guard(ScaleLR(factor=0.5, times=9), Rollback(mode="replay"))
    run(make_batches(12, BAD), [first, checkpoints(tmp_path, every_n_epochs=1)], enable_checkpointing=True, epochs=1)
    path = tmp_path / "step=10.ckpt"
    loaded = torch.load(path, weights_only=True)
    state = loaded["callbacks"]["SpikeGuard"]
    assert state["lr_scale"]["value"] == 0.25
    assert len(state["journal"]["incidents"]) == 2
    second = guard(ScaleLR(factor=0.5, times=9), Rollback(mode="replay"))
    expected = run(make_batches(12, BAD), [guard(ScaleLR(factor=0.5, times=9), Rollback(mode="replay"))], epochs=2)
    resumed = run(make_batches(12, BAD), [second], epochs=2, ckpt_path=path)
    assert_same(comparable(resumed), comparable(expected))
    assert second.state_dict()["lr_scale"]["value"] == 0.0625


@pytest.mark.parametrize(("saved_at", "undone"), [(4, 0), (3, 1)])
def test_a_resumed_run_begins_with_a_snapshot(tmp_path, saved_at, undone):
    """Uninterrupted, the rollback at step 4 goes back to step 0."""
    every_step = checkpoints(tmp_path, every_n_train_steps=1)
    whole, resumed = guard(Rollback(times=9), snapshot_every=9), guard(Rollback(times=9), snapshot_every=9)
    run(make_batches(12, {4}), [whole, every_step], enable_checkpointing=True, epochs=1)
    path = tmp_path / f"step={saved_at}.ckpt"
    run(make_batches(12, {4}), [resumed], ckpt_path=path, epochs=1)
    assert [incident.steps_rolled_back for incident in whole.incidents] == [4]
    assert [incident.steps_rolled_back for incident in resumed.incidents] == [undone]


class SaveAfterTry(Callback):
    """Saves by hand, behind the guard, after every try or at its beginning, when the batch is under way."""

    def __init__(self, folder, within):
        self.folder, self.within, self.paths = folder, within, []

    def save(self, trainer):
        self.paths.append(self.folder / f"{len(self.paths)}.ckpt")
        trainer.save_checkpoint(self.paths[-1])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.within:
            with torch.random.fork_rng():
                torch.rand(1)  # as the training step would
                self.save(trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not self.within and not progress.is_accumulating(trainer):  # no checkpoint holds half a window's gradients
            self.save(trainer)


REPLAYS = {  # the bad batches, and what is special
    "one": ({6}, {"shuffle": True}),
    "twice": ({2, 6, 7}, {}),
    "end of an epoch": ({14}, {}),
    "validated": ({6, 9}, {"val_check_interval": 5}),
    "shorter last window": ({14}, {"accumulate_grad_batches": 2}),
}


@pytest.mark.parametrize("within", [False, True])
@pytest.mark.parametrize("name", REPLAYS)
def test_a_checkpoint_from_the_middle_of_a_replay_loses_nothing(tmp_path, name, within):
    bad, arguments = REPLAYS[name]
    if within and name == "shorter last window":
        bad, arguments = {8, 10}, {}  # nor the first half's in the middle of the second

    def train(callbacks=(), **more):
        replaying = guard(Rollback("replay", times=9), snapshot_every=4)
        outcome = run(make_batches(15, bad), [replaying, *callbacks], epochs=2, **arguments, **more)
        return comparable(outcome), [str(incident).partition(": ")[2] for incident in replaying.incidents]

    save = SaveAfterTry(tmp_path, within)
    expected = train([save])
    assert len(expected[1]) == 2 * len(bad)
    paths = save.paths if within else save.paths[:-1]  # the last one is saved when nothing is left to do
    for path in paths[4:16] if within else paths[5:17]:  # from before a replay of the first epoch to the second one
        assert_same(train(ckpt_path=path), expected, path.stem)


def ladder():
    rungs = [SaveBatch(times=1), ScaleLR(factor=0.25, times=1, recover_after=6), ClipStep(times=3)]
    return guard(*rungs, SkipStep(times=9), forgive_after=None)


@pytest.mark.parametrize("step", [1, 4, 8, 9, 17])  # lowered, on its way, rising, clipped, back up
def test_the_ladder_the_rate_and_the_typical_norm_go_on_where_they_were(tmp_path, step):
    batches = make_batches(24, {1, 13, 14})
    batches[8]["y"] *= 1e3
    whole, second = ladder(), ladder()
    arguments = {"epochs": 2, "default_root_dir": tmp_path}
    expected = run(batches, [whole], **arguments)
    run(
        batches,
        [ladder(), checkpoints(tmp_path / "kept", every_n_train_steps=1)],
        enable_checkpointing=True,
        **{**arguments, "epochs": 1},
    )
    resumed = run(batches, [second], ckpt_path=tmp_path / "kept" / f"step={step}.ckpt", **arguments)
    assert [one.response for one in whole.incidents][:2] == ["ScaleLR", "ClipStep"]
    assert_same([str(one) for one in second.incidents], [str(one) for one in whole.incidents])
    assert_same(comparable(resumed), comparable(expected))
    same = ("ladder", "lr_scale", "signals", "passed_over")
    states = second.state_dict(), whole.state_dict()
    assert_same(*({name: state[name] for name in same} for state in states))


SCRIPT = """
    import sys, warnings
    warnings.filterwarnings("ignore")
    sys.path.insert(0, {root!r})
    from lightning.pytorch.callbacks import ModelCheckpoint
    from tests.faulty_runs import make_batches, run
    from tests.guard.test_spike_guard import guard
    from lightning_stable.guard import SkipStep
    from lightning_stable.testing import InjectFault

    last = ModelCheckpoint(dirpath={folder!r}, save_last=True, every_n_train_steps=5, save_top_k=1)
    callbacks = [guard(SkipStep(times=99)), InjectFault("kill", step=20), last]
    run(make_batches(12, {bad!r}), callbacks, epochs=3, shuffle=True, enable_checkpointing=True)
"""


def test_a_run_killed_without_warning_ends_as_if_it_had_not_been(tmp_path):
    script = textwrap.dedent(SCRIPT).format(root=str(ROOT), folder=str(tmp_path), bad=BAD)
    killed = subprocess.run([sys.executable, "-c", script], timeout=120, capture_output=True, cwd=tmp_path)
    assert killed.returncode == -signal.SIGKILL, killed.stderr.decode()
    assert os.path.exists(tmp_path / "last.ckpt")
    second = guard(SkipStep(times=99))
    resumed = run(make_batches(12, BAD), [second], epochs=3, shuffle=True, ckpt_path=tmp_path / "last.ckpt")
    expected = run(make_batches(12, BAD), [guard(SkipStep(times=99))], epochs=3, shuffle=True)
    assert_same(comparable(resumed), comparable(expected))
    assert len(second.incidents) == 6
