# SPDX-License-Identifier: Apache-2.0
"""A warning tells people and does nothing else: not to the run, not to budgets, not twice."""

import json
import warnings

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_stable.detectors import Above, LevelShift
from lightning_stable.guard import Notify, Rollback, SaveBatch, ScaleLR, SkipStep, SpikeGuard, TrainingHalted
from tests.faulty_runs import ManualNet, Net, TextNet, assert_same, make_batches, run
from tests.guard.test_spike_guard import COUNT, TwoOptimizers, guard, scaler_plugin, without
from tests.guard_from_yaml import guard_from_yaml
from tests.monitors.attentive_runs import Remembers

# a checkpoint that knows of a `ModelCheckpoint` may be resumed without one
pytestmark = pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")


def shift(**arguments):
    return LevelShift(**{"block": 2, "blocks": 2, "min_rise": 0.0, "threshold": 0.0, **arguments})


class Drifts(Net):
    """Logs a number that comes with the batch; the loss stays what it is."""

    def training_step(self, batch, batch_idx):
        self.log("level", batch["level"])
        return super().training_step(batch, batch_idx)


def rising(bad=()):
    """Batches whose number rises once, at the eighth, and stays there."""
    batches = enumerate(make_batches(16, bad))
    return [{**batch, "level": torch.tensor(1.0 if index < 8 else 2.0)} for index, batch in batches]


def warned(batches, callbacks, **arguments):
    """The outcome, and what was warned of by the guard."""
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        outcome = run(batches, callbacks, **arguments)
    return outcome, [str(one.message) for one in caught if str(one.message).startswith("SpikeGuard: ")]


def told(guarded):
    return [(one.signal, one.step) for one in guarded.warnings]


SETTINGS = {
    "fp32": dict,
    "accumulated": lambda: {"accumulate_grad_batches": 2},
    "16-mixed": lambda: {"plugins": [scaler_plugin()]},
    "manual": lambda: {"model": ManualNet},
    "two optimizers": lambda: {"model": TwoOptimizers},
    "gpt": lambda: {"model": TextNet},
}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_warning_changes_nothing_of_the_run(setting):
    batches = make_batches(COUNT, kind="text" if setting == "gpt" else "net")
    guarded = guard(SkipStep(), Rollback(mode="replay"), warn={"loss": Above(0.0)}, snapshot_every=3)
    actual, messages = warned(batches, [guarded], **SETTINGS[setting]())
    assert_same(actual, run(batches, **SETTINGS[setting]()))
    assert guarded.incidents == []
    assert len(messages) == len(guarded.warnings) == (2 if setting == "two optimizers" else 1)


def test_it_is_written_logged_summed_up_and_told_apart_from_incidents(tmp_path, capsys):
    class RemembersHere(Remembers):
        save_dir = str(tmp_path)

    logger, heard = RemembersHere(), []
    ladder = [SaveBatch(), Notify(heard.append, times=1), SkipStep(times=9)]
    guarded = guard(*ladder, warn={"level": shift()})
    settings = {"model": Drifts, "epochs": 1, "default_root_dir": tmp_path, "logger": logger}
    _, messages = warned(rising({13}), [guarded], **settings)
    assert told(guarded) == [("level", 9)]
    assert [(one.signal, one.response, one.step) for one in guarded.incidents] == [("grad_norm", "SkipStep", 13)]
    warning = guarded.warnings[0]
    assert warning.is_warning
    assert (warning.response, warning.value, warning.global_step, warning.batches) == ("Warning", 2.0, 9, [9])
    assert (warning.steps_skipped, warning.restored, warning.notes) == (0, [], ["raised by LevelShift"])
    assert heard == [warning, guarded.incidents[0]]  # the warning has spent nothing of its budget
    assert [path.name for path in (tmp_path / "spikes").glob("*.pt")] == ["step00000013.pt"]
    lines = [json.loads(line) for line in (tmp_path / "incidents.jsonl").read_text().splitlines()]
    assert [line["response"] for line in lines] == ["Warning", "SkipStep"]
    assert len(messages) == 1
    assert "level is 2, Warning (batch 9 of epoch 0), raised by LevelShift. Nothing was done" in messages[0]
    assert "Lower the learning rate, go back to an earlier checkpoint, or look at the data." in messages[0]
    assert [(sent["stability/incidents"], sent["stability/warnings"]) for sent in logger.sent.values()] == [
        (int(step >= 13), int(step >= 9)) for step in range(16)
    ]
    printed = " ".join(capsys.readouterr().out.replace("│", " ").split())
    assert "incidents 1 (1 SkipStep) warnings 1 (1 level) steps skipped 1" in printed


def test_an_alarm_that_lasts_is_told_once_and_a_new_one_again():
    class Waves(Net):
        def training_step(self, batch, batch_idx):
            self.log("level", 5.0 if batch_idx in (3, 4, 5, 9) else 1.0)
            return super().training_step(batch, batch_idx)

    guarded = guard(SkipStep(), warn={"level": Above(2.0)})
    _, messages = warned(make_batches(COUNT), [guarded], model=Waves, epochs=1)
    assert told(guarded) == [("level", 3), ("level", 9)]
    assert len(messages) == 2


@pytest.mark.parametrize("how", ["nan", "huge"])
def test_a_step_that_is_left_out_is_not_judged(how):
    guarded = guard(SkipStep(times=99), warn={"loss": Above(50.0), "grad_norm": Above(1e4)})
    _, messages = warned(make_batches(COUNT, {7, 10}, how=how), [guarded], epochs=1)
    assert len(guarded.incidents) == 2
    assert messages == []
    clean = guard(SkipStep(), warn={"loss": Above(50.0), "grad_norm": Above(1e4)})
    run(without(make_batches(COUNT), {7, 10}), [clean], epochs=1)
    assert warnings_of(guarded) == warnings_of(clean)


def warnings_of(guarded):
    return guarded.state_dict()["signals"]["warnings"]


def test_a_number_that_is_only_warned_of_never_vetoes():
    class LogsNaN(Net):
        def training_step(self, batch, batch_idx):
            self.log("level", float("nan") if batch_idx in (4, 5) else 1.0)
            return super().training_step(batch, batch_idx)

    guarded = guard(SkipStep(), warn={"level": shift()})
    actual, messages = warned(make_batches(COUNT), [guarded], model=LogsNaN, epochs=1)
    assert guarded.incidents == []
    assert told(guarded) == [("level", 4)]
    assert "level is nan" in messages[0]
    assert_same(actual.weights, run(make_batches(COUNT), epochs=1).weights)


def test_budgets_and_the_learning_rates_recovery_do_not_know_of_it():
    def climbed(warn):
        rungs = [SkipStep(times=1), ScaleLR(factor=0.5, times=9, recover_after=3)]
        guarded = guard(*rungs, forgive_after=6, warn=warn)
        outcome, _ = warned(make_batches(24, {3, 5, 15, 17}), [guarded], epochs=1)
        parts = {part: guarded.state_dict()[part] for part in ("ladder", "lr_scale")}
        return outcome, [(one.step, one.response) for one in guarded.incidents], parts, guarded

    quiet, incidents, parts, _ = climbed({})
    loud, *same, guarded = climbed({"loss": Above(0.7)})
    assert len(guarded.warnings) > 3
    assert [incidents, parts] == same
    assert {response for _, response in incidents} == {"SkipStep", "ScaleLR"}
    assert_same(loud, quiet)


@pytest.mark.parametrize("back", [1, 2])
def test_a_replay_goes_through_the_same_history_and_tells_nothing_twice(back):
    """The state goes back with the model, so it ends as that of a run that never held the bad batches."""
    guarded = guard(Rollback(mode="replay", times=9, back=back), snapshot_every=4, warn={"level": shift()})
    _, messages = warned(rising({10}), [guarded], model=Drifts, epochs=1)
    assert guarded.incidents[0].steps_rolled_back >= 2
    assert told(guarded) == [("level", 9)]
    assert len(messages) == 1
    clean = guard(SkipStep(), warn={"level": shift()})
    warned(without(rising(), {10}), [clean], model=Drifts, epochs=1)
    assert warnings_of(guarded) == warnings_of(clean)


def test_a_rollback_that_skips_forgets_what_was_undone():
    loss = {"loss": shift(threshold=1e9)}
    guarded = guard(Rollback(mode="skip", times=9), snapshot_every=4, warn=loss)
    run(make_batches(16, {10}), [guarded], epochs=1)
    clean = guard(SkipStep(), warn=loss)
    run(without(make_batches(16), {8, 9, 10}), [clean], epochs=1)
    assert warnings_of(guarded) == warnings_of(clean)


def test_a_resumed_run_goes_on_with_the_same_history(tmp_path):
    def made():
        return guard(SkipStep(), warn={"loss": shift(), "level": shift()})

    every = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    whole, again = made(), made()
    arguments = {"model": Drifts, "epochs": 1}
    warned(rising(), [whole, every], enable_checkpointing=True, **arguments)
    _, messages = warned(rising(), [again], ckpt_path=tmp_path / "step=9.ckpt", **arguments)
    assert told(again) == told(whole)
    assert ("level", 9) in told(whole)
    assert warnings_of(again) == warnings_of(whole)
    assert len(messages) == len([step for _, step in told(whole) if step >= 9])


def test_each_optimizer_has_a_history_of_its_own():
    guarded = guard(SkipStep(), warn={"loss": Above(0.0)})
    warned(make_batches(COUNT), [guarded], model=TwoOptimizers, epochs=1)
    assert told(guarded) == [("loss", 0), ("loss/1", 0)]


def test_a_warning_that_is_an_error_ends_the_run_when_it_is_written_down(tmp_path):
    """As whoever makes errors of warnings has asked for."""
    guarded = guard(SkipStep(), warn={"loss": Above(0.0)})
    with pytest.raises(UserWarning, match="Nothing was done about it"):
        run(make_batches(COUNT), [guarded], default_root_dir=tmp_path)
    assert len((tmp_path / "incidents.jsonl").read_text().splitlines()) == 1


def test_the_report_of_a_halt_counts_spikes():
    guarded = guard(warn={"loss": Above(0.0)})
    with pytest.warns(UserWarning, match="Nothing was done"), pytest.raises(TrainingHalted, match="after 1 incident;"):
        run(make_batches(COUNT, {3}), [guarded], epochs=1)


def test_by_default_a_slow_rise_of_the_loss_is_warned_of():
    assert {key: type(detector) for key, detector in SpikeGuard()._signals._warn.items()} == {"loss": LevelShift}
    guarded = SpikeGuard(watch={})
    batches = make_batches(4) * 600
    for index in range(2000, 2400):
        batches[index] = {**batches[index], "y": batches[index]["y"] * (1 + (index - 2000) / 50)}
    _, messages = warned(batches, [guarded], epochs=1, log_every_n_steps=1000)
    assert [one.signal for one in guarded.warnings] == ["loss"]
    assert len(messages) == 1


def test_nothing_is_warned_of_where_nothing_is_to_be():
    guarded = SpikeGuard(warn={})
    run(make_batches(COUNT), [guarded], epochs=1)
    assert warnings_of(guarded) == {"detectors": {}, "kinds": {}, "alarmed": []}


def test_a_history_that_is_not_asked_for_any_more_is_left_behind():
    before = guard(SkipStep(), warn={"loss": shift()})
    warned(make_batches(COUNT), [before], epochs=1)
    after = guard(SkipStep(), warn={})
    after.load_state_dict(before.state_dict())
    assert warnings_of(after)["detectors"] == {}
    assert told(after) == told(before)


def test_something_else_than_a_detector_is_refused():
    with pytest.raises(TypeError, match=r"`SpikeGuard\(warn=...\)`: 'loss' must map to a detector, got 0.1"):
        SpikeGuard(warn={"loss": 0.1})


def test_a_key_that_is_never_logged_is_named():
    with pytest.warns(UserWarning, match=r"`SpikeGuard\(warn={'levle': ...}\)` watches a key that has not been logged"):
        run(make_batches(COUNT), [guard(SkipStep(), warn={"levle": shift()})], epochs=1)


def test_it_can_be_built_from_yaml():
    made = guard_from_yaml(
        """
        warn:
          val: {class_path: lightning_stable.detectors.LevelShift, init_args: {block: 7}}
        """
    )
    assert made._signals._warn["val"].block == 7
    assert guard_from_yaml("warn: {}")._signals._warn == {}
