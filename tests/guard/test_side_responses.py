# SPDX-License-Identifier: Apache-2.0
"""What acts beside the response that answers changes nothing of the run, and nothing that fails in it ends the run."""

import json
from types import SimpleNamespace

import pytest
import torch

from lightning_stable.guard import Notify, SaveBatch, SkipStep, TrainingHalted
from lightning_stable.guard.side_responses import Scene
from tests.faulty_runs import Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import COUNT, TakesAnIterator, guard, without
from tests.guard_from_yaml import guard_from_yaml

TOLD = []


def tell(incident):
    TOLD.append(incident)


@pytest.fixture(autouse=True)
def nothing_told():
    TOLD.clear()


@pytest.mark.parametrize("a_window", [1, 2])
def test_they_change_nothing_of_the_run(tmp_path, a_window):
    arguments = {"accumulate_grad_batches": a_window, "default_root_dir": tmp_path, "epochs": 1}
    ladder = [SaveBatch(times=9), Notify(tell), SkipStep(times=9)]
    actual = run(make_batches(COUNT, {4, 8}), [guard(*ladder)], **arguments)
    left_out = {4, 8} if a_window == 1 else {4, 5, 8, 9}
    assert_same(actual, run(without(make_batches(COUNT), left_out), **arguments))
    assert len(TOLD) == 2
    assert len(list((tmp_path / "spikes").glob("*.pt"))) == 2


def test_they_act_on_the_spike_that_halts_the_run_too(tmp_path):
    with pytest.raises(TrainingHalted):
        run(make_batches(COUNT, {3}), [guard(SaveBatch(), Notify(tell))], default_root_dir=tmp_path)
    assert [incident.response for incident in TOLD] == ["Halt"]
    assert (tmp_path / "spikes" / "step00000003.pt").exists()


def test_each_acts_as_long_as_it_has_budget(tmp_path):
    ladder = [SaveBatch(times=1), Notify(tell, times=2), SkipStep(times=9)]
    run(make_batches(COUNT, {3, 5, 7}), [guard(*ladder)], default_root_dir=tmp_path, epochs=1)
    assert [path.name for path in (tmp_path / "spikes").glob("*.pt")] == ["step00000003.pt"]
    assert [incident.step for incident in TOLD] == [3, 5]


def test_a_folder_holds_so_many_batches_and_no_more(tmp_path):
    ladder = [SaveBatch(times=9, max_files=2), SkipStep(times=9)]
    guarded = guard(*ladder)
    run(make_batches(COUNT, {3, 5, 7}), [guarded], default_root_dir=tmp_path, epochs=1)
    assert len(list((tmp_path / "spikes").glob("*.pt"))) == 2
    assert [any("max_files=2" in note for note in one.notes) for one in guarded.incidents] == [False, False, True]
    with pytest.raises(ValueError, match=r"`SaveBatch\(max_files=...\)` must be at least 1, got 0"):
        SaveBatch(max_files=0)


# Notify


def test_it_is_told_when_the_incident_is_written_down(tmp_path):
    lines = []

    def look(incident):
        lines.append(json.loads((tmp_path / "incidents.jsonl").read_text().splitlines()[-1])["step"] == incident.step)

    guarded = guard(Notify(look), SkipStep(times=9))
    run(make_batches(COUNT, {3, 7}), [guarded], default_root_dir=tmp_path, epochs=1)
    assert lines == [True, True]


def test_what_it_raises_is_a_warning():
    def fail(incident):
        raise KeyError(incident.step)

    with pytest.warns(UserWarning, match=r"`Notify\(function=...\)` raised KeyError: 5. The run goes on."):
        actual = run(make_batches(COUNT, {5}), [guard(Notify(fail), SkipStep())], epochs=1)
    assert_same(actual, run(without(make_batches(COUNT), {5}), epochs=1))


@pytest.mark.parametrize("rank", [0, 1])
def test_of_several_processes_the_first_one_calls(rank):
    trainer = SimpleNamespace(is_global_zero=rank == 0)
    Notify(tell).act(Scene(trainer, None, "the incident", {}, [], {}))
    assert (["the incident"] if rank == 0 else []) == TOLD


def test_by_default_it_prints(capsys):
    run(make_batches(COUNT, {5}), [guard(Notify(), SkipStep())], epochs=1)
    assert "step 5: grad_norm is nan, SkipStep (batch 5 of epoch 0)\n" in capsys.readouterr().out


@pytest.mark.parametrize("function", ["nowhere.tell", "math.pi", "math.tell", "not a path", 7, None])
def test_what_cannot_be_called_is_refused(function):
    with pytest.raises(ValueError, match=r"`Notify\(function=...\)` must be a function or the import path of one"):
        Notify(function)


def test_both_can_be_built_from_yaml():
    made = guard_from_yaml(
        """
        ladder:
          - {class_path: lightning_stable.guard.SaveBatch, init_args: {folder: bad/ones}}
          - {class_path: lightning_stable.guard.Notify, init_args: {function: json.dumps, times: 4}}
          - {class_path: lightning_stable.guard.ClipStep, init_args: {times: 5}}
          - class_path: lightning_stable.guard.Rollback
            init_args: {mode: replay, back: 2, reset_momentum: true, escalate: 4}
          - {class_path: lightning_stable.guard.SkipData, init_args: {batches: 9}}
          - {class_path: lightning_stable.guard.ScaleLR, init_args: {recover_after: 100}}
          - class_path: lightning_stable.guard.Halt
        snapshots: 3
        snapshot_to: device
        max_bytes: 1000000
        cooldown: 5
        """
    )
    save, notify, clip, rollback, skip, scale, _ = made._ladder.rungs
    assert (save.folder, notify.times, notify._function, clip.times) == ("bad/ones", 4, json.dumps, 5)
    assert (rollback.back, rollback.reset_momentum, rollback.escalate, skip.batches) == (2, True, 4, 9)
    assert scale.recover_after == 100


# SaveBatch: where


@pytest.mark.parametrize("folder", ["..", "../elsewhere", "deep/../../elsewhere", "/tmp", "link"])
def test_it_writes_nowhere_but_below_the_runs_directory(tmp_path, folder):
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "link").symlink_to(tmp_path)
    guarded = guard(SaveBatch(folder=folder), SkipStep())
    with pytest.raises(ValueError, match=r"`SaveBatch\(folder=...\)` must lie within the run's directory"):
        run(make_batches(3), [guarded], default_root_dir=tmp_path / "run")


@pytest.mark.parametrize("folder", ["spikes", ".", "a/b/../c"])
def test_any_folder_below_it_will_do(tmp_path, folder):
    run(make_batches(COUNT, {5}), [guard(SaveBatch(folder), SkipStep())], default_root_dir=tmp_path, epochs=1)
    assert sorted(path.name for path in (tmp_path / folder).resolve().glob("step*")) == [
        "step00000005.json",
        "step00000005.pt",
    ]


def test_of_several_processes_each_has_a_file_of_its_own(tmp_path, monkeypatch):
    written = []
    monkeypatch.setattr("lightning_stable.guard.side_responses.write_step", lambda path, *_: written.append(path) or [])
    save = SaveBatch()
    for rank in (0, 1):
        trainer = SimpleNamespace(log_dir=str(tmp_path), world_size=2, global_rank=rank)
        save.prepare(trainer)
        save.act(Scene(trainer, None, SimpleNamespace(step=7, notes=[]), {}, [], {}))
    assert [path.name for path in written] == ["step00000007_rank0.pt", "step00000007_rank1.pt"]


def test_a_full_disk_does_not_end_the_run(tmp_path, monkeypatch):
    def no_space(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("lightning_stable.guard.saved_step.write_atomically", no_space)
    guarded = guard(SaveBatch(), SkipStep())
    with pytest.warns(UserWarning, match=r"cannot write .*\(No space left on device\). The run goes on"):
        actual = run(make_batches(COUNT, {5}), [guarded], default_root_dir=tmp_path, epochs=1)
    not_finite = "193 gradient entries are not finite, in layers.0.weight, layers.0.bias, layers.1.weight and 3 more"
    assert guarded.incidents[0].notes == [not_finite, "batch not saved: No space left on device"]
    assert_same(actual, run(without(make_batches(COUNT), {5}), epochs=1))


def test_a_folder_that_cannot_be_made_does_not_end_the_run(tmp_path):
    (tmp_path / "spikes").write_text("a file is in the way")
    with pytest.warns(UserWarning, match="The run goes on, the batch is not saved"):
        run(make_batches(COUNT, {5}), [guard(SaveBatch(), SkipStep())], default_root_dir=tmp_path, epochs=1)


@pytest.mark.filterwarnings("ignore:.*dataloader_iter.*", "ignore:.*The first argument of.*")
def test_a_step_that_fetches_for_itself_has_no_batch_to_save():
    with pytest.raises(ValueError, match=r"`SaveBatch\(\)` needs a `training_step` that takes a batch.* Leave it out."):
        run(make_batches(COUNT), [guard(SaveBatch(), SkipStep())], model=TakesAnIterator)


class Halves(Net):
    def training_step(self, batch, batch_idx):
        batch["x"].mul_(0.5)
        return super().training_step(batch, batch_idx)


def test_a_batch_is_saved_as_the_loader_gave_it(tmp_path):
    batches = make_batches(COUNT)
    batches[5]["y"] *= float("nan")
    run(batches, [guard(SaveBatch(), SkipStep())], model=Halves, default_root_dir=tmp_path, epochs=1)
    saved = torch.load(tmp_path / "spikes" / "step00000005.pt", weights_only=True)
    assert torch.equal(saved["batches"][0]["x"], batches[5]["x"])
