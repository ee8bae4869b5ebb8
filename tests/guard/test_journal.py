# SPDX-License-Identifier: Apache-2.0
import json
from types import SimpleNamespace

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_stable.guard import ClipStep, Incident, Rollback, SkipData, SkipStep
from lightning_stable.guard.journal import Journal
from tests.faulty_runs import make_batches, run
from tests.guard.test_spike_guard import guard

# a checkpoint that knows of a `ModelCheckpoint` may be resumed without one
pytestmark = pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")


def test_every_incident_is_a_line_of_json(tmp_path):
    guarded = guard(SkipStep(times=1), Rollback(mode="skip", times=99), snapshot_every=4)
    run(make_batches(12, {5, 7}), [guarded], default_root_dir=tmp_path, epochs=1)
    lines = [json.loads(line) for line in (tmp_path / "incidents.jsonl").read_text().splitlines()]
    assert [line["response"] for line in lines] == ["SkipStep", "Rollback"]
    assert [line["batches"] for line in lines] == [[5], [7]]
    assert [line["steps_rolled_back"] for line in lines] == [0, 2]
    assert [line["value"] for line in lines] == ["nan", "nan"]
    assert all(line["seconds_lost"] > 0 for line in lines)
    assert [Incident.from_json(line).step for line in lines] == [5, 7]


def test_a_resumed_run_has_all_incidents_in_its_own_folder(tmp_path):
    """Also if none comes after the resume."""
    every = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole = guard(SkipStep())
    run(make_batches(12, {5}), [whole, every], enable_checkpointing=True, default_root_dir=tmp_path / "a", epochs=1)
    again = guard(SkipStep())
    run(make_batches(12, {5}), [again], ckpt_path=tmp_path / "step=8.ckpt", default_root_dir=tmp_path / "b", epochs=1)
    written = [(tmp_path / folder / "incidents.jsonl").read_text() for folder in ("a", "b")]
    assert written[0] == written[1]
    assert len(again.incidents) == 1


def test_the_summary_counts_what_was_survived(tmp_path, capsys):
    logger = TensorBoardLogger(tmp_path, name="runs", version="a")
    run(make_batches(12, {5, 7}), [guard(SkipStep(times=1), Rollback(mode="replay"))], logger=logger, epochs=1)
    printed = " ".join(capsys.readouterr().out.split())
    for part in (
        "optimizer steps",
        "10",
        "1 SkipStep, 1 Rollback",
        "steps rolled back",
        "seconds lost",
        "validation loss",
        "best",
        "tensorboard --logdir",
    ):
        assert part in printed


def test_an_incident_says_what_was_done_and_where_the_model_stood(capsys):
    guarded = guard(SkipStep(times=1), SkipData(batches=2, times=1), ClipStep(), snapshot_every=2)
    batches = make_batches(16, {3, 7})
    batches[14]["y"] *= 1e4
    run(batches, [guarded], epochs=1)
    skipped, skipped_data, clipped = guarded.incidents
    assert [one.response for one in guarded.incidents] == ["SkipStep", "SkipData", "ClipStep"]
    assert [one.global_step for one in guarded.incidents] == [3, 6, 10 - skipped_data.steps_rolled_back]
    assert [one.batches_passed_over for one in guarded.incidents] == [0, 2, 0]
    assert "schedules" in skipped.restored
    assert "weights" in skipped_data.restored
    assert clipped.restored[0].startswith("gradients x ")
    assert clipped.norm_before > 100 * clipped.norm_after
    assert skipped.norm_before is None
    assert "batches passed over 2" in " ".join(capsys.readouterr().out.replace("│", " ").split())


def test_incidents_and_warnings_are_kept_together_and_told_apart():
    journal = Journal()
    fields = {"epoch": 0, "batches": [1], "signal": "loss", "value": 2.0, "threshold": 1.0}
    spike = Incident(step=1, global_step=1, response="SkipStep", **fields)
    warning = Incident(step=2, global_step=1, response="Warning", **fields)
    journal.records = [spike, warning]
    assert (journal.incidents, journal.warnings) == ([spike], [warning])
    assert journal.has_warned(Incident(step=9, global_step=1, response="Warning", **fields))
    journal.warnings[0].signal = "\x1b[31mloss"
    trainer = SimpleNamespace(global_step=1, loggers=[])
    assert ("warnings", r"1 (1 \x1b[31mloss)") in journal.summary_rows(trainer)  # shown, and not obeyed
    journal.warnings[0].signal = "loss"
    assert not journal.has_warned(Incident(step=9, global_step=2, response="Warning", **fields))
    assert not journal.has_warned(Incident(step=9, global_step=1, response="Warning", **{**fields, "signal": "other"}))
    again = Journal()
    again.load_state_dict(journal.state_dict())
    assert again.records == journal.records


def test_the_summary_is_plain_text_without_rich(monkeypatch, capsys, tmp_path):
    monkeypatch.setitem(__import__("sys").modules, "rich.console", None)
    run(make_batches(12, {5}), [guard(SkipStep())], epochs=1, default_root_dir=tmp_path)
    assert "  steps skipped      1\n" in capsys.readouterr().out


@pytest.mark.parametrize("logger", [False, "csv"])
def test_any_logger_or_none_will_do(tmp_path, logger):
    chosen = CSVLogger(tmp_path, name="csv") if logger else False
    guarded = guard(SkipStep())
    run(make_batches(12, {5}), [guarded], logger=chosen, default_root_dir=tmp_path, epochs=1)
    assert len(guarded.incidents) == 1
    assert list(tmp_path.rglob("incidents.jsonl"))


def test_a_folder_that_cannot_be_written_is_said_once_and_the_run_goes_on(tmp_path):
    (tmp_path / "file").write_text("in the way")
    guarded = guard(SkipStep(times=9))
    with pytest.warns(UserWarning, match=r"SpikeGuard cannot write .*incidents.jsonl .*The run goes on") as warned:
        run(make_batches(12, {5, 7}), [guarded], default_root_dir=tmp_path / "file", epochs=1)
    assert len([w for w in warned if "SpikeGuard cannot write" in str(w.message)]) == 1
    assert len(guarded.incidents) == 2
