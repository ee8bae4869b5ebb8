# SPDX-License-Identifier: Apache-2.0
"""Whether the data, the state or the machine brought a spike about; and that looking for it leaves no trace."""

import collections
import json
import math
import random
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.detectors import Above
from lightning_stable.functional.fingerprint import fingerprint
from lightning_stable.guard import ClipStep, Diagnose, Rollback, SaveBatch, SavedStep, SkipStep, SpikeGuard
from lightning_stable.guard.diagnosis import _equal
from lightning_stable.optim import SAM
from lightning_stable.testing import InjectFault
from tests.faulty_runs import Batches, ManualNet, Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import COUNT, SETTINGS, TakesAnIterator, arguments_of, guard, kind_of, without
from tests.guard_from_yaml import guard_from_yaml

AUTOMATIC = [setting for setting in SETTINGS if "manual" not in setting]
NOT_AGAIN = "not reproducible: hardware or nondeterminism"


def diagnosed(*callbacks, batches=None, bad=(), how="nan", ladder=None, **arguments):
    """The incidents of a run, each looked into; a snapshot is taken every three steps."""
    ladder = [SkipStep(times=9), Rollback()] if ladder is None else ladder
    guarded = guard(Diagnose(times=9), *ladder, snapshot_every=3, snapshots=3)
    batches = make_batches(COUNT, bad, how=how) if batches is None else batches
    run(batches, [guarded, *callbacks], **{"epochs": 1, **arguments})
    return guarded.incidents


def causes(*arguments, **keywords):
    return [incident.cause for incident in diagnosed(*arguments, **keywords)]


# What it finds


@pytest.mark.parametrize("setting", AUTOMATIC)
def test_a_bad_batch_is_bad_again_and_from_an_older_snapshot(setting):
    batches = make_batches(COUNT, {5, 8}, kind=kind_of(setting))
    assert causes(batches=batches, **arguments_of(setting)) == ["the data", "the data"]


@pytest.mark.parametrize("setting", [setting for setting in AUTOMATIC if kind_of(setting) == "net"])
def test_a_finite_spike_is_the_same_again_to_the_last_bit(setting):
    batches = make_batches(COUNT)
    for index in (5, 8):
        batches[index]["y"] *= 80.0  # no more than a gradient scaler can bear
    first, *others = diagnosed(batches=batches, **arguments_of(setting))
    assert first.batches == [5]
    for incident in (first, *others):
        assert incident.cause == "the data"
        assert f"{incident.signal} {incident.value:.6g}" in incident.notes[0]


def test_in_a_whole_accumulation_window_too():
    (incident,) = diagnosed(batches=make_batches(24, {15}, how="huge"), accumulate_grad_batches=2)
    assert (incident.batches, incident.cause) == ([14, 15], "the data")


class Breaks(Callback):
    """Multiply the weights after a step."""

    def __init__(self, step, factor=1e4):
        self.step, self.factor = step, factor

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.step:
            with torch.no_grad():
                pl_module.layers[4].weight.mul_(self.factor)


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_state_that_broke_since_the_snapshot_is_told_from_a_bad_batch(accumulate):
    broken = Breaks(step=5 * accumulate - 1)  # after the fifth step; the last snapshot before it is that of step 3
    incident = diagnosed(broken, batches=make_batches(20), accumulate_grad_batches=accumulate)[0]
    assert (incident.global_step, incident.cause) == (5, "the state: the batch is fine from step 3")


class BreaksLate(Net):
    """A buffer that breaks after the fifth step, and is used in the ninth."""

    def __init__(self):
        super().__init__()
        self.register_buffer("factor", torch.ones(()))

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss * self.factor if batch_idx == 8 else loss

    def on_train_batch_end(self, outputs, batch, batch_idx):
        if batch_idx == 4:
            self.factor.fill_(1e6)


def test_of_several_snapshots_the_newest_that_is_fine_is_named():
    (incident,) = diagnosed(model=BreaksLate)
    assert (incident.batches, incident.cause) == ([8], "the state: the batch is fine from step 3")
    assert [note.partition(":")[0] for note in incident.notes] == ["again in place", "from step 6", "from step 3"]


def test_a_buffer_alone_can_be_what_broke():
    class Poisoned(BreaksLate):
        def on_train_batch_end(self, outputs, batch, batch_idx):
            if batch_idx == 7:
                self.factor.fill_(float("nan"))

    assert causes(model=Poisoned) == ["the state: the batch is fine from step 6"]


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("in_front", [True, False])
@pytest.mark.parametrize("kind", ["nan_loss", "huge_gradient", "nan_activation"])
def test_what_does_not_happen_again_was_no_fault_of_the_data(kind, in_front, accumulate):
    fault = InjectFault(kind, step=5, factor=1e6 if kind == "huge_gradient" else None)
    guarded = guard(Diagnose(), SkipStep(), Rollback(), snapshot_every=3)
    callbacks = [fault, guarded] if in_front else [guarded, fault]
    run(make_batches(24), callbacks, epochs=1, accumulate_grad_batches=accumulate)
    assert [incident.cause for incident in guarded.incidents] == [NOT_AGAIN]
    assert len(fault.fired) == 1


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("in_front", [True, False])
@pytest.mark.parametrize("kind", ["nan_data", "nan_loss"])
def test_a_fault_that_is_said_to_be_in_the_data_is_found_there(kind, in_front, accumulate):
    fault = InjectFault(kind, step=5, repeat=True)
    guarded = guard(Diagnose(), SkipStep(), Rollback(), snapshot_every=3)
    callbacks = [fault, guarded] if in_front else [guarded, fault]
    run(make_batches(24), callbacks, epochs=1, accumulate_grad_batches=accumulate)
    assert [incident.cause for incident in guarded.incidents] == ["the data"]
    assert len(fault.fired) == 1


@pytest.mark.parametrize(("bad", "ladder"), [({0}, (SkipStep(), Rollback())), ({5}, (SkipStep(),))])
def test_without_an_older_snapshot_data_and_state_cannot_be_told_apart(bad, ladder):
    assert causes(bad=bad, ladder=ladder) == ["the data or the state"]


class Augments(Net):
    """Random numbers where the batch is moved, and in the loader's process."""

    def on_after_batch_transfer(self, batch, dataloader_idx):
        return {**batch, "x": batch["x"] + 0.1 * torch.randn_like(batch["x"]) + 0.1 * random.random()}


class Noisy(Batches):
    def __getitem__(self, index):
        batch = super().__getitem__(index)
        return {**batch, "x": batch["x"] * (1 + 0.1 * torch.randn(()))}


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_same_random_numbers_are_drawn_again(accumulate):
    batches = make_batches(24, {16}, how="huge")
    arguments = {"model": Augments, "dataset": Noisy, "accumulate_grad_batches": accumulate}
    assert causes(batches=batches, **arguments) == ["the data"]


def test_the_step_sees_the_counters_of_its_first_try():
    class Warms(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * (1 + self.global_step)

    assert causes(bad={5}, how="huge", model=Warms) == ["the data"]


def test_a_rollback_and_its_replay_are_looked_into_as_well():
    ladder = (Rollback(mode="replay", times=9),)
    assert causes(bad={5, 8}, ladder=ladder) == ["the data", "the data"]


@pytest.mark.parametrize(
    ("one", "other", "exact", "same"),
    [
        (1.0, 1.0, True, True),
        (1.0, 1.0 + 1e-9, True, False),
        (1.0, 1.0009, False, True),
        (1.0, 1.0011, False, False),
        (math.nan, math.nan, True, True),
        (math.inf, math.inf, True, True),
        (math.inf, math.nan, True, False),
        (math.inf, math.nan, False, True),
        (math.nan, 1.0, False, False),
        (math.inf, 1.0, False, False),
    ],
)
def test_when_two_readings_are_the_same(one, other, exact, same):
    assert _equal(one, other, exact) == _equal(other, one, exact) == same


# What is not looked into


def test_a_step_that_was_taken_is_not():
    batches = make_batches(COUNT, {8}, how="huge")
    (incident,) = diagnosed(batches=batches, ladder=(ClipStep(), SkipStep()))
    assert (incident.response, incident.cause) == ("ClipStep", "")
    assert incident.notes == ["cause not looked for: the step was taken"]
    assert incident.batch_hash == [fingerprint(batches[8])]


def test_a_spike_of_something_else_is_not():
    class Logs(Net):
        def training_step(self, batch, batch_idx):
            self.log("heat", float(batch_idx == 5))
            return super().training_step(batch, batch_idx)

    guarded = SpikeGuard(watch={"heat": Above(0.5)}, ladder=[Diagnose(), SkipStep()])
    run(make_batches(COUNT), [guarded], model=Logs, epochs=1)
    assert [incident.cause for incident in guarded.incidents] == [""]
    assert guarded.incidents[0].notes == ["cause not looked for: neither loss nor gradient norm gave the spike away"]


class FailsAgain(Net):
    """Raises in the second try of a batch, or in the third, having changed much before it."""

    def __init__(self, error, tries):
        super().__init__()
        self.error, self.tries = error, tries

    def on_train_batch_start(self, batch, batch_idx):
        self.tried = []  # a list of its own for each batch, which is put back with the rest

    def training_step(self, batch, batch_idx):
        TRIES[batch_idx] += 1
        loss = super().training_step(batch, batch_idx)
        if TRIES[batch_idx] > self.tries:
            with torch.no_grad():
                self.layers[0].weight.zero_()
            raise self.error
        return loss


TRIES = collections.Counter()


@pytest.mark.parametrize(("tries", "cause"), [(1, ""), (2, "the data or the state")])
@pytest.mark.parametrize("error", [KeyError("gone"), torch.OutOfMemoryError("CUDA out of memory"), MemoryError()])
def test_what_the_repeated_step_raises_is_a_note_and_everything_is_put_back(error, tries, cause):
    TRIES.clear()
    guarded = guard(Diagnose(), SkipStep(), Rollback(), snapshot_every=3)
    with pytest.warns(UserWarning, match=r"`Diagnose\(\)` could not run the step again .* The run goes on."):
        actual = run(make_batches(COUNT, {5}), [guarded], epochs=1, model=lambda: FailsAgain(error, tries))
    (incident,) = guarded.incidents
    assert incident.cause == cause
    assert incident.notes[-1] == f"cause not found: {type(error).__name__}: {error}"
    assert_same(actual, run(without(make_batches(COUNT), {5}), epochs=1))


# Where it is written


def test_the_incident_says_it_and_knows_the_batches_again(tmp_path):
    batches = make_batches(24, {11}, how="huge")
    arguments = {"accumulate_grad_batches": 2, "default_root_dir": tmp_path}
    (incident,) = diagnosed(batches=batches, ladder=(SkipStep(), SaveBatch(), Rollback()), **arguments)
    assert str(incident).endswith("SkipStep (batches [10, 11] of epoch 0); cause: the data")
    assert incident.batch_hash == [fingerprint(batches[10]), fingerprint(batches[11])]
    readings = [note.partition(": ")[2] for note in incident.notes[:2]]
    assert readings[0].startswith("loss ")
    assert "grad_norm" in readings[0]
    (line,) = (tmp_path / "incidents.jsonl").read_text().splitlines()
    assert json.loads(line)["cause"] == "the data"
    assert json.loads(line)["batch_hash"] == incident.batch_hash
    assert SavedStep(str(next((tmp_path / "spikes").glob("*.pt")))).info["cause"] == "the data"


def test_a_file_that_was_saved_before_it_in_the_ladder_says_it_too(tmp_path):
    guarded = guard(SaveBatch(), Diagnose(), SkipStep(), Rollback(), snapshot_every=3)
    run(make_batches(COUNT, {5}), [guarded], default_root_dir=tmp_path, epochs=1)
    assert SavedStep(str(next((tmp_path / "spikes").glob("*.pt")))).info["cause"] == "the data"


def test_it_is_in_the_checkpoint(tmp_path):
    guarded = guard(Diagnose(), SkipStep(), Rollback(), snapshot_every=3)
    path = tmp_path / "saved.ckpt"
    run(make_batches(COUNT, {5}), [guarded], epochs=1, after=lambda trainer: trainer.save_checkpoint(path))
    resumed = guard(Diagnose(), SkipStep(), Rollback(), snapshot_every=3)
    run(make_batches(COUNT), [resumed], epochs=2, ckpt_path=path)
    (before,), (after,) = guarded.incidents, resumed.incidents
    assert after.to_json() == before.to_json()
    assert (after.cause, after.batch_hash) == ("the data", [fingerprint(make_batches(COUNT, {5})[5])])


def test_it_acts_as_long_as_it_has_budget():
    guarded = guard(Diagnose(times=1), SkipStep(times=9), Rollback(), snapshot_every=3)
    run(make_batches(COUNT, {5, 8}), [guarded], epochs=1)
    assert [incident.cause for incident in guarded.incidents] == ["the data", ""]


# What is refused


def test_manual_optimization_is_refused():
    with pytest.raises(ValueError, match=r"`Diagnose\(\)` needs automatic optimization.* Leave it out."):
        causes(model=ManualNet)


@pytest.mark.filterwarnings("ignore:.*dataloader_iter.*", "ignore:.*The first argument of.*")
def test_a_step_that_fetches_for_itself_is_refused():
    with pytest.raises(ValueError, match=r"`Diagnose\(\)` needs a `training_step` that takes a batch.* Leave it out."):
        causes(model=TakesAnIterator)


def test_an_optimizer_that_moves_to_take_its_gradient_is_refused():
    with pytest.raises(ValueError, match=r"`Diagnose\(\)` cannot run a step of `SAM` again.* Leave it out."):
        causes(model=lambda: Net(lambda parameters: SAM(parameters)))


def test_more_than_one_process_is_refused():
    with pytest.raises(RuntimeError, match=r"`Diagnose\(\)` runs steps again in one process, and there are 2"):
        Diagnose().prepare(SimpleNamespace(world_size=2))


def test_a_budget_below_one_is_refused():
    with pytest.raises(ValueError, match=r"`Diagnose\(times=...\)` must be at least 1, got 0."):
        Diagnose(times=0)


def test_it_can_be_built_from_yaml():
    made = guard_from_yaml(
        """
        ladder:
          - {class_path: lightning_stable.guard.Diagnose, init_args: {times: 4}}
          - {class_path: lightning_stable.guard.SkipStep}
        """
    )
    diagnose, _ = made.ladder.rungs
    assert (type(diagnose), diagnose.times) == (Diagnose, 4)
