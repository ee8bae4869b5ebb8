# SPDX-License-Identifier: Apache-2.0
"""What it asserts, one by one: each with a run that recovers and one that does not."""

import pytest
import torch
from lightning.pytorch import Callback, LightningDataModule, Trainer
from torch.utils.data import DataLoader

from lightning_stable.guard import ClipStep, Halt, Notify, Rollback, SaveBatch, ScaleLR, SkipStep, SpikeGuard
from lightning_stable.testing import InjectFault, assert_recovers
from tests.faulty_runs import Batches, ManualNet, Net, make_batches
from tests.guard.test_spike_guard import TwoOptimizers, guard, scaler_plugin


def loader(count=12):
    return DataLoader(Batches(make_batches(count)), batch_size=None)


def trainer(*callbacks, **arguments):
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"enable_model_summary": False, "num_sanity_val_steps": 0, "max_epochs": 1}
    torch.manual_seed(0)
    return Trainer(accelerator="cpu", devices=1, callbacks=list(callbacks), **{**quiet, **arguments})


def recover(*callbacks, model=Net, count=12, settings=None, **arguments):
    made = trainer(*callbacks, **(settings or {}))
    return assert_recovers(made, model(), loader(count), loader(2), **arguments)


def skipping(times=9):
    return guard(SkipStep(times=times))


@pytest.fixture(autouse=True)
def _no_files(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # incidents.jsonl


def test_it_returns_what_happened():
    run = recover(skipping(), InjectFault("nan_loss", step=3), InjectFault("inf_gradient", step=5))
    assert [incident.step for incident in run.incidents] == [3, 5]
    assert [(fault.kind, fault.step) for fault in run.fired] == [("nan_loss", 3), ("inf_gradient", 5)]
    assert run.global_step == 10
    assert not run.halted
    assert 0 < run.final_loss < 5


@pytest.mark.parametrize("model", [Net, ManualNet, TwoOptimizers])
@pytest.mark.parametrize("response", [SkipStep(times=9), Rollback(mode="replay", times=9)], ids=["skip", "replay"])
def test_any_way_of_training_will_do(model, response):
    run = recover(guard(response), InjectFault("nan_loss", step=6), model=model)
    assert len(run.incidents) == 1


@pytest.mark.parametrize("settings", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str)
def test_any_setting_will_do(settings):
    run = recover(skipping(), InjectFault("nan_data", step=3), settings=settings)
    assert len(run.incidents) == 1


def test_a_data_module_will_do():
    class Data(LightningDataModule):
        def train_dataloader(self):
            return loader()

        def val_dataloader(self):
            return loader(2)

    run = assert_recovers(trainer(skipping(), InjectFault("nan_loss", step=3)), Net(), Data())
    assert len(run.incidents) == 1


def test_the_trainer_keeps_its_callbacks():
    made = trainer(skipping(), InjectFault("nan_loss", step=3))
    before = list(made.callbacks)
    assert_recovers(made, Net(), loader(), loader(2))
    assert made.callbacks == before


def test_a_halt_has_to_be_allowed():
    faults = [InjectFault("nan_loss", step=step) for step in (3, 4)]
    with pytest.raises(AssertionError, match=r"The guard halted the run. Give it more budget .*or pass `allow_halt"):
        recover(skipping(times=1), *faults)
    run = recover(skipping(times=1), *faults, InjectFault("nan_loss", step=9), allow_halt=True)
    assert run.halted
    assert [incident.response for incident in run.incidents] == ["SkipStep", "Halt"]


def test_an_error_of_the_models_own_is_raised_as_it_is():
    class Breaks(Net):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("on purpose")

    made = trainer(skipping())
    with pytest.raises(RuntimeError, match="on purpose"):
        assert_recovers(made, Breaks(), loader(), loader(2))
    assert len(made.callbacks) == 1


class Spoils(Callback):
    """Puts a NaN somewhere behind the guard's back."""

    def __init__(self, spoil):
        self.spoil = spoil

    def on_train_end(self, trainer, pl_module):
        with torch.no_grad():
            self.spoil(trainer, pl_module)


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda t, m: m.layers[0].weight.fill_(torch.nan), r"Weights are not finite: layers.0.weight. The bad step"),
        (lambda t, m: m.layers[1].running_var.fill_(torch.inf), r"Buffers are not finite: layers.1.running_var."),
        (
            lambda t, m: t.optimizers[0].state[m.layers[4].bias]["exp_avg"].fill_(torch.nan),
            r"Optimizer states are not finite: layers.4.bias.exp_avg.",
        ),
    ],
    ids=["weights", "buffers", "optimizer"],
)
def test_what_is_not_finite_is_named(spoil, message):
    with pytest.raises(AssertionError, match=message):
        recover(skipping(), Spoils(spoil))


def test_a_buffer_that_never_was_finite_may_stay_so():
    class Masked(Net):
        def __init__(self):
            super().__init__()
            self.register_buffer("mask", torch.full((2, 2), -torch.inf).triu(1))

    recover(skipping(), model=Masked)


def test_a_fault_that_does_not_come_proves_nothing():
    with pytest.raises(
        AssertionError, match=r"`InjectFault\('nan_loss', step=50\)` did not fire. The run has 12 steps"
    ):
        recover(skipping(), InjectFault("nan_loss", step=50))
    recover(skipping(), InjectFault("nan_loss", step=3, rank=1))  # of another rank


class Deaf(Callback):
    """Looks like a guard, and does nothing."""

    judges_gradients = True
    incidents = ()


@pytest.mark.parametrize("kind", ["nan_loss", "nan_gradient"])
def test_a_bad_step_without_an_incident_is_named(kind):
    with pytest.raises(AssertionError, match=r"- Step 3 had a loss of .*, gradients not finite, and no incident"):
        recover(Deaf(), InjectFault(kind, step=3))


def test_a_loud_fault_that_goes_by_is_named_unless_that_is_allowed():
    quiet = InjectFault("huge_loss", step=1)  # while the detectors warm up
    with pytest.raises(AssertionError, match=r"huge_loss at step 1 .* was not noticed. Make its `factor` larger"):
        recover(skipping(), quiet)
    assert recover(skipping(), quiet, allow_undetected=True).incidents == []


def test_an_overflow_is_the_scalers_to_answer():
    run = recover(skipping(), InjectFault("inf_gradient", step=3), settings={"plugins": [scaler_plugin()]})
    assert run.incidents == []


@pytest.mark.parametrize(
    "ladder",
    [
        [SkipStep(times=1), ScaleLR(times=1), Rollback(mode="replay", times=2)],
        [SkipStep(times=1), Rollback(times=1), SkipStep(times=2)],
    ],
    ids=["mixed", "twice the same"],
)
@pytest.mark.parametrize("forgive_after", [None, 3])
def test_the_budgets_of_a_ladder_are_followed(ladder, forgive_after):
    faults = [InjectFault("nan_loss", step=step) for step in (2, 3, 4, 11)]
    run = recover(guard(*ladder, forgive_after=forgive_after), *faults, count=24)
    assert len(run.incidents) == 4
    assert (run.incidents[3].response == "SkipStep") == (forgive_after == 3 or "ScaleLR" not in str(ladder))


@pytest.mark.parametrize(
    "guarded",
    [
        lambda: guard(SaveBatch(), Notify(lambda incident: None), SkipStep(times=9)),
        lambda: guard(ClipStep(), SkipStep(times=9)),
        lambda: guard(Rollback(times=9), SkipStep(times=9), cooldown=9),
        lambda: guard(SkipStep(times=1, count_skipped=True), Rollback(times=1), ScaleLR(times=9), snapshot_every=3),
    ],
    ids=["side responses", "one that does not apply", "cooldown", "counted skips"],
)
def test_a_rung_that_others_pass_by_is_none_that_should_have_answered(guarded):
    faults = [InjectFault("nan_loss", step=step) for step in (2, 4, 11)]
    assert len(recover(guarded(), *faults, count=24).incidents) == 3


def test_more_of_one_answer_than_the_ladder_holds_is_named():
    class Spender(SpikeGuard):
        @property
        def ladder(self):
            return SpikeGuard(ladder=[ClipStep(times=9), SkipStep(times=1)])._ladder

    faults = [InjectFault("nan_loss", step=step) for step in (3, 4)]
    with pytest.raises(AssertionError, match=r"The ladder's budgets hold 1 of these in a row: step 4"):
        recover(Spender(), *faults)


def test_an_answer_that_the_budget_does_not_hold_is_named():
    class Spender(SpikeGuard):
        @property
        def ladder(self):
            return SpikeGuard(ladder=[Halt()])._ladder

    with pytest.raises(AssertionError, match=r"By the ladder's budgets the answer should have been Halt: step 3"):
        recover(Spender(), InjectFault("nan_loss", step=3))


def test_there_may_be_too_many_incidents():
    faults = [InjectFault("nan_loss", step=step) for step in (3, 4)]
    assert len(recover(skipping(), *faults, max_incidents=2).incidents) == 2
    with pytest.raises(AssertionError, match=r"There were 2 incidents, and `max_incidents=1` allows fewer"):
        recover(skipping(), *faults, max_incidents=1)


def test_the_loss_at_the_end_is_compared_with_a_clean_run():
    clean = recover(skipping())
    guarded = recover(skipping(), InjectFault("nan_loss", step=3), clean_loss=clean.final_loss, tolerance=0.5)
    assert guarded.final_loss == pytest.approx(clean.final_loss, rel=0.5)
    with pytest.raises(AssertionError, match=r"The final loss is .*, more than 5% above the 0.01 of a clean run"):
        recover(skipping(), clean_loss=0.01)


def test_steps_that_were_taken_back_do_not_count_for_the_loss_at_the_end():
    run = recover(skipping(), InjectFault("huge_loss", step=11), InjectFault("nan_loss", step=10), last_steps=3)
    assert run.final_loss < 5


def test_a_trainer_without_a_fresh_guard_is_refused():
    with pytest.raises(ValueError, match=r"`assert_recovers\(trainer=...\)` needs one guard, got 0"):
        recover()
    used = skipping()
    recover(used, InjectFault("nan_loss", step=3))
    with pytest.raises(ValueError, match="needs a guard that was not used before"):
        recover(used)


def test_the_message_tells_everything_at_once():
    faults = InjectFault("nan_loss", step=3), InjectFault("nan_loss", step=50)
    with pytest.raises(AssertionError) as caught:
        recover(skipping(), *faults, max_incidents=0)
    lines = str(caught.value).splitlines()
    assert lines[0] == "The run did not recover:"
    assert sum(line.startswith("- ") for line in lines) == 2
    assert "  nan_loss at step 3 (batch 3 of epoch 0)" in lines
    assert lines[-1].startswith("  step 3: ")
