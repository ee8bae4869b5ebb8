# SPDX-License-Identifier: Apache-2.0
"""When a fault fires, when it comes back, and that it leaves nothing behind."""

import pickle

import jsonargparse
import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.demos.boring_classes import BoringModel

from lightning_stable.guard import Rollback, SkipStep, TrainingHalted
from lightning_stable.testing import InjectFault
from lightning_stable.testing.faults import FAULT_KINDS
from tests.faulty_runs import ManualNet, Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import SETTINGS, TakesAnIterator, arguments_of, guard, kind_of, without
from tests.testing.watched_runs import Labelled, labelled_batches

IN_PROCESS = [kind for kind, known in FAULT_KINDS.items() if known.hits not in ("process", "optimizer")]
FOR_NET = [kind for kind in IN_PROCESS if kind not in ("label_noise", "dead_loss_scale")]


def steps_of(fault):
    return [fired.step for fired in fault.fired]


def batches_of(fault):
    return [(fired.epoch, fired.batch) for fired in fault.fired]


# The contract of a callback


@pytest.mark.parametrize("kind", FAULT_KINDS)
def test_it_pickles_and_comes_from_yaml(kind):
    assert repr(pickle.loads(pickle.dumps(InjectFault(kind, step=3)))) == repr(InjectFault(kind, step=3))
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--callback", type=Callback)
    config = parser.parse_string(
        f"callback: {{class_path: lightning_stable.testing.InjectFault, init_args: {{kind: {kind}, step: 3}}}}"
    )
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # until jsonargparse 4.48
    assert repr(instantiate(config).callback) == f"InjectFault('{kind}', step=3)"


def test_what_it_prints_makes_it_again():
    fault = InjectFault("label_noise", step=3, rank=1, target="y", how="replace", repeat=False, seed=5)
    assert repr(eval(repr(fault), {"InjectFault": InjectFault})) == repr(fault)
    assert repr(InjectFault("huge_loss", 4)) == "InjectFault('huge_loss', step=4)"


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_fault_that_does_not_come_leaves_no_trace(setting):
    batches = make_batches(6, kind=kind_of(setting))
    faults = [InjectFault(kind, step=99) for kind in FAULT_KINDS if kind != "dead_loss_scale"]
    faults.append(InjectFault("nan_loss", step=1, rank=1))
    assert_same(run(batches, faults, **arguments_of(setting)), run(batches, **arguments_of(setting)))
    assert not any(fault.fired for fault in faults)


class Spy(Callback):
    """What is attached to trainer, module and optimizers, behind everybody's `on_train_batch_end`."""

    def __init__(self):
        self.found = []

    def look(self, trainer, pl_module):
        return {
            "module": sorted(vars(pl_module)),
            "strategy": sorted(vars(trainer.strategy)),
            "forward hooks": [len(module._forward_hooks) for module in pl_module.modules()],
            "gradient hooks": [len(parameter._backward_hooks or ()) for parameter in pl_module.parameters()],
            "optimizer": sorted(vars(trainer.optimizers[0])),
        }

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.last = self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.found.append(self.look(trainer, pl_module))


@pytest.mark.parametrize("model", [Net, ManualNet])
@pytest.mark.parametrize("kind", [kind for kind in FOR_NET if kind != "lr_drift"])
def test_nothing_is_hooked_or_replaced_but_in_the_batch_that_is_hit(kind, model):
    spy, fault = Spy(), InjectFault(kind, step=3, repeat=False)
    run(make_batches(8), [fault, spy], model=model, epochs=1)
    assert steps_of(fault) == [3]
    assert all(found == spy.found[1] for found in spy.found[1:])


@pytest.mark.parametrize("kind", FOR_NET)
def test_it_pickles_after_a_fit_and_changes_nothing_without_one(kind):
    fault = InjectFault(kind, step=1)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False}
    quiet |= {"max_steps": 3, "limit_val_batches": 1, "enable_model_summary": False}
    trainer, model = Trainer(accelerator="cpu", callbacks=[fault], **quiet), BoringModel()
    trainer.fit(model)
    fired = pickle.loads(pickle.dumps(fault)).fired
    assert fired == fault.fired
    assert fired
    trainer.validate(model, verbose=False)
    assert fault.fired == fired


@pytest.mark.parametrize("kind", FOR_NET)
def test_it_goes_away_when_the_run_breaks_off(kind):
    class Breaks(Net):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)
            raise KeyError("on purpose")

    models, fault = [], InjectFault(kind, step=0)
    with pytest.raises(KeyError, match="on purpose"):
        run(make_batches(3), [fault], model=lambda: models.append(Breaks()) or models[0])
    assert "training_step" not in vars(models[0])
    assert not any(module._forward_hooks for module in models[0].modules())
    assert not any(parameter._backward_hooks for parameter in models[0].parameters())


def test_a_run_that_the_guard_halts_is_left_clean():
    models, fault = [], InjectFault("nan_loss", step=2)
    with pytest.raises(TrainingHalted):
        run(make_batches(6), [guard(), fault], model=lambda: models.append(Net()) or models[0])
    assert "training_step" not in vars(models[0])
    assert steps_of(fault) == [2]


def test_faults_that_come_together_leave_together():
    spy = Spy()
    faults = [InjectFault(kind, step=3) for kind in ("nan_loss", "huge_loss", "nan_data", "nan_activation")]
    run(make_batches(6), [*faults, guard(SkipStep(times=9)), spy], epochs=1)
    assert [steps_of(fault) for fault in faults] == [[3]] * 4
    assert all(found["module"] == spy.found[0]["module"] for found in spy.found)


def test_the_global_random_numbers_are_left_alone():
    def numbers(*faults):
        return run(labelled_batches(6), faults, model=Labelled).random

    faults = [InjectFault("label_noise", step=1, how=how) for how in ("shuffle", "replace")]
    assert_same(numbers(*faults), numbers())


# When


@pytest.mark.parametrize(
    ("accumulate", "step", "batch"), [(1, 0, (0, 0)), (1, 9, (1, 2)), (2, 3, (0, 6)), (2, 4, (1, 0)), (3, 2, (0, 6))]
)
def test_steps_are_counted_over_epochs_and_hit_in_their_first_batch(accumulate, step, batch):
    fault = InjectFault("nan_loss", step=step)
    run(make_batches(7), [fault], accumulate_grad_batches=accumulate)  # the last step of an epoch is shorter
    assert batches_of(fault) == [batch]
    assert steps_of(fault) == [step]


@pytest.mark.parametrize("first", [True, False], ids=["before the guard", "behind the guard"])
@pytest.mark.parametrize(
    "response",
    [SkipStep(times=99), Rollback(times=99), Rollback(mode="replay", times=99)],
    ids=["skip", "roll back", "replay"],
)
@pytest.mark.parametrize("kind", ["nan_loss", "nan_gradient", "inf_gradient", "nan_activation"])
def test_a_transient_fault_fires_once_whatever_is_undone(kind, response, first):
    fault, guarded = InjectFault(kind, step=6), guard(response, snapshot_every=4)
    run(make_batches(12), [fault, guarded] if first else [guarded, fault])
    assert steps_of(fault) == [6]
    assert [incident.step for incident in guarded.incidents] == [6]


def test_a_transient_fault_may_come_in_the_middle_of_a_replay():
    """Batch 6 is bad; 4 and 5 are tried again as steps 7 and 8, and the second one of them fails for once."""
    faults = InjectFault("nan_loss", step=6), InjectFault("nan_loss", step=8)
    guarded = guard(Rollback(mode="replay", times=99), snapshot_every=4)
    actual = run(make_batches(12), [*faults, guarded], epochs=1)
    assert [steps_of(fault) for fault in faults] == [[6], [8]]
    assert_same(actual, run(without(make_batches(12), {5, 6}), epochs=1))


def test_a_fault_in_the_data_is_counted_by_the_data_and_comes_back_with_it():
    """A replay of two steps lies between the first and the second."""
    faults = InjectFault("nan_data", step=6), InjectFault("nan_loss", step=9, repeat=True)
    guarded = guard(Rollback(mode="replay", times=99), snapshot_every=4)
    actual = run(make_batches(12), [*faults, guarded])
    assert [[batch for _, batch in batches_of(fault)] for fault in faults] == [[6, 6], [9, 9]]
    assert [epoch for epoch, _ in batches_of(faults[0])] == [0, 1]
    assert_same(actual, run(without(make_batches(12), {6, 9})))


def test_what_slips_through_comes_back_in_a_replay():
    """Noise at step 5 is not seen; when step 6 fails, the batch of step 5 is replayed with the same noise."""
    models, noise = [], InjectFault("label_noise", step=5)
    callbacks = [noise, InjectFault("nan_loss", step=6), guard(Rollback(mode="replay", times=9), snapshot_every=4)]
    run(labelled_batches(8), callbacks, model=lambda: models.append(Labelled()) or models[0], epochs=1)
    labels = [batch["labels"] for batch in models[0].batches]
    assert steps_of(noise) == [5, 8]
    assert torch.equal(labels[5], labels[8])
    assert not torch.equal(labels[5], labelled_batches(8)[5]["labels"])


def test_an_untold_repeat_is_that_of_the_kind():
    assert InjectFault("nan_data", 1).repeat
    assert InjectFault("label_noise", 1).repeat
    assert not InjectFault("nan_loss", 1).repeat
    once = InjectFault("nan_data", 2, repeat=False)
    run(make_batches(4), [once, guard(SkipStep(times=9))])
    assert steps_of(once) == [2]


def test_every_batch_of_an_accumulated_step_is_known_by_itself():
    fault = InjectFault("nan_data", step=2)
    actual = run(make_batches(8), [fault, guard(SkipStep(times=9))], accumulate_grad_batches=2)
    assert batches_of(fault) == [(0, 4), (1, 4)]
    assert_same(actual, run(without(make_batches(8), {4, 5}), accumulate_grad_batches=2))


def test_the_same_fault_starts_anew_in_the_next_fit():
    fault = InjectFault("nan_loss", step=2)
    for _ in range(2):
        run(make_batches(4), [guard(SkipStep(times=9)), fault], epochs=1)
        assert steps_of(fault) == [2]


# Checkpoints


pytestmark = pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")


def every_step(folder):
    return ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)


def faults_of_the_run():
    return [InjectFault("nan_loss", step=3), InjectFault("nan_loss", step=8), InjectFault("nan_data", step=5)]


@pytest.mark.parametrize("saved_at", [2, 3, 4, 6, 9])
def test_a_resumed_run_has_the_faults_it_would_have_had(tmp_path, saved_at):
    arguments = {"epochs": 2, "shuffle": False}
    whole = faults_of_the_run()
    expected = run(make_batches(7), [guard(SkipStep(times=99)), *whole], **arguments)
    before = [guard(SkipStep(times=99)), *faults_of_the_run(), every_step(tmp_path)]
    run(make_batches(7), before, enable_checkpointing=True, **arguments)
    path, resumed = tmp_path / f"step={saved_at}.ckpt", faults_of_the_run()
    torch.load(path, weights_only=True)
    actual = run(make_batches(7), [guard(SkipStep(times=99)), *resumed], ckpt_path=path, **arguments)
    assert_same(actual.weights, expected.weights)
    assert [fault.fired for fault in resumed] == [fault.fired for fault in whole]
    assert [batches_of(fault) for fault in whole] == [[(0, 3)], [(1, 1)], [(0, 5), (1, 5)]]


def test_a_fault_the_checkpoint_does_not_know_counts_by_lightnings_numbers(tmp_path):
    run(make_batches(6), [every_step(tmp_path)], enable_checkpointing=True, epochs=1)
    fault, passed = InjectFault("nan_loss", step=8), InjectFault("nan_loss", step=2)
    run(make_batches(6), [fault, passed], epochs=2, ckpt_path=tmp_path / "step=6.ckpt")
    assert batches_of(fault) == [(1, 2)]
    assert passed.fired == []


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_an_optimizer_is_wiped_in_the_first_resume_alone(tmp_path):
    def resume(path, **arguments):
        fault = InjectFault("wiped_optimizer", step=0)
        callbacks = [fault, every_step(tmp_path / f"after {path.stem}")]
        run(make_batches(6), callbacks, ckpt_path=path, enable_checkpointing=True, **arguments)
        return fault.fired

    run(make_batches(6), [every_step(tmp_path)], enable_checkpointing=True, epochs=1)
    first = resume(tmp_path / "step=6.ckpt", epochs=2)
    again = resume(tmp_path / "after step=6" / "step=12.ckpt", epochs=3)
    assert len(first) == 1
    assert first == again


def test_a_second_fault_alike_has_a_name_of_its_own_in_the_checkpoint(tmp_path):
    path = tmp_path / "last.ckpt"
    faults = [InjectFault("nan_loss", step=2), InjectFault("nan_loss", step=3)]
    run(make_batches(6), [guard(SkipStep(times=9)), *faults], after=lambda trainer: trainer.save_checkpoint(path))
    states = torch.load(path, weights_only=True)["lightning_stable.testing.InjectFault"]
    assert list(states) == ["InjectFault('nan_loss', step=2)", "InjectFault('nan_loss', step=3)"]


@pytest.mark.filterwarnings("ignore:.*dataloader_iter.*", "ignore:.*The first argument of.*")
def test_a_step_that_fetches_for_itself_can_have_no_fault_in_its_data():
    with pytest.raises(RuntimeError, match=r"`InjectFault\('nan_data', step=1\)` needs a `training_step` that takes a"):
        run(make_batches(4), [InjectFault("nan_data", step=1)], model=TakesAnIterator)


def test_one_fault_of_each_kind_in_a_run_is_left_out_of_it():
    kinds = ["nan_loss", "nan_gradient", "inf_gradient", "nan_activation", "nan_data"]
    faults = [InjectFault(kind, step=5 + 7 * index) for index, kind in enumerate(kinds)]
    guarded = guard(SkipStep(times=9))
    actual = run(make_batches(40), [*faults, guarded], epochs=1)
    assert [incident.step for incident in guarded.incidents] == [5, 12, 19, 26, 33]
    assert_same(actual, run(without(make_batches(40), {5, 12, 19, 26, 33}), epochs=1))
