# SPDX-License-Identifier: Apache-2.0
"""Every kind does what it says, at the step it says, once, wherever the callback stands."""

import copy
import math
import os
import signal
from pathlib import Path

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_stable.guard import SkipStep
from lightning_stable.testing import InjectFault
from lightning_stable.testing.faults import FAULT_KINDS
from tests.faulty_runs import ManualNet, Net, make_batches, run
from tests.guard.test_recovery import Compiled
from tests.guard.test_spike_guard import TwoOptimizers, guard
from tests.testing.watched_runs import Labelled, Watch, labelled_batches, watched

WEIGHT = "layers.4.weight"


def scaler_plugin():
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=64.0))


SETTINGS = {
    "fp32": dict,
    "accumulated": lambda: {"accumulate_grad_batches": 2},
    "manual": lambda: {"model": ManualNet},
    "bf16-mixed": lambda: {"precision": "bf16-mixed"},
    "16-mixed": lambda: {"plugins": [scaler_plugin()]},
    "manual 16-mixed": lambda: {"model": ManualNet, "plugins": [scaler_plugin()]},
}
every_setting = pytest.mark.parametrize("setting", SETTINGS)
wherever_it_stands = pytest.mark.parametrize("before", [True, False], ids=["behind the watch", "before the watch"])


def batch_of(step, setting):
    return 2 * step if setting == "accumulated" else step


def indices_of(values, is_meant):
    return [index for index, value in enumerate(values) if is_meant(value)]


def not_finite(value):
    return not math.isfinite(value)


@every_setting
@wherever_it_stands
def test_nan_loss(setting, before):
    fault = InjectFault("nan_loss", step=3)
    watch, _ = watched(fault, guard(SkipStep(times=9)), before=before, **SETTINGS[setting]())
    assert indices_of(watch.losses, not_finite) == [batch_of(3, setting)]
    assert watch.bad_gradients(WEIGHT) == [3]
    if "manual" not in setting:
        assert indices_of(watch.outputs, not_finite) == [batch_of(3, setting)]
    assert [(fired.step, fired.batch) for fired in fault.fired] == [(3, batch_of(3, setting))]


@every_setting
@wherever_it_stands
def test_huge_loss(setting, before):
    watch, _ = watched(InjectFault("huge_loss", step=3, factor=1e3), before=before, **SETTINGS[setting]())
    clean, _ = watched(before=before, **SETTINGS[setting]())
    at = batch_of(3, setting)
    assert watch.losses[:at] == clean.losses[:at]
    assert watch.losses[at] == pytest.approx(1e3 * clean.losses[at], rel=1e-6)
    if setting not in ("accumulated", "16-mixed", "manual 16-mixed"):
        torch.testing.assert_close(watch.gradients[3][WEIGHT], 1e3 * clean.gradients[3][WEIGHT], rtol=0.02, atol=1e-5)


def test_the_loss_in_a_dictionary_is_hit_too():
    class SaysMore(Net):
        def training_step(self, batch, batch_idx):
            return {"loss": super().training_step(batch, batch_idx), "more": torch.ones(())}

    watch, _ = watched(InjectFault("nan_loss", step=3), model=SaysMore)
    assert indices_of(watch.losses, not_finite)[0] == 3
    assert not_finite(watch.outputs[3])


@every_setting
@pytest.mark.parametrize(("kind", "is_it"), [("nan_gradient", torch.isnan), ("inf_gradient", torch.isinf)])
def test_gradients_that_are_not_finite(setting, kind, is_it):
    watch, _ = watched(InjectFault(kind, step=3), guard(SkipStep(times=9)), before=True, **SETTINGS[setting]())
    clean, _ = watched(before=True, **SETTINGS[setting]())
    assert all(is_it(gradient).all() for gradient in watch.gradients[3].values())
    assert all(watch.bad_gradients(name) == [3] for name in watch.gradients[3])
    at = batch_of(3, setting)
    assert watch.losses[: at + 1] == clean.losses[: at + 1]  # the loss of that batch is as it was


@every_setting
def test_a_huge_gradient_of_one_parameter(setting):
    watch, _ = watched(InjectFault("huge_gradient", step=3, target=WEIGHT, factor=1e3), **SETTINGS[setting]())
    clean, _ = watched(**SETTINGS[setting]())
    for name, gradient in watch.gradients[3].items():
        if name != WEIGHT:
            assert torch.equal(gradient, clean.gradients[3][name])
        elif setting != "accumulated":
            torch.testing.assert_close(gradient, 1e3 * clean.gradients[3][name])
    if setting == "accumulated":  # one of the two batches
        assert watch.gradients[3][WEIGHT].norm() > 30 * clean.gradients[3][WEIGHT].norm()


@every_setting
@wherever_it_stands
def test_nan_activation(setting, before):
    seen = []

    def look(module, inputs, output):
        if torch.is_grad_enabled():
            seen.append(bool(output.isnan().all()))

    class Looks(SETTINGS[setting]().get("model", Net)):
        def on_train_start(self):
            self.layers[3].register_forward_hook(look)  # Dropout; the first with parameters is layers.0

    faults = InjectFault("nan_activation", step=3), guard(SkipStep(times=9))
    watch, _ = watched(*faults, before=before, **(SETTINGS[setting]() | {"model": Looks}))
    assert indices_of(watch.losses, not_finite) == [batch_of(3, setting)]
    assert indices_of(seen, bool) == [batch_of(3, setting)]


def test_huge_activation_of_a_named_module():
    watch, _ = watched(InjectFault("huge_activation", step=3, target="layers.4", factor=100.0))
    clean, _ = watched()
    assert watch.losses[:3] == clean.losses[:3]
    assert indices_of(watch.losses, lambda loss: loss > 10 * max(clean.losses)) == [3]


def test_an_activation_is_left_alone_in_validation():
    outcome = run(make_batches(4), [InjectFault("huge_activation", step=3, target="layers.4")], epochs=1)
    assert all(loss < 10 for loss in outcome.val_losses)


@every_setting
def test_nan_data(setting):
    kept = []

    class Keeps(SETTINGS[setting]().get("model", Net)):
        def training_step(self, batch, batch_idx):
            kept.append(batch)
            return super().training_step(batch, batch_idx)

    batches = make_batches(12)
    run(batches, [InjectFault("nan_data", step=3)], epochs=1, **(SETTINGS[setting]() | {"model": Keeps}))
    nan = [bool(batch["x"].isnan().all() and batch["y"].isnan().all()) for batch in kept]
    assert indices_of(nan, bool) == [batch_of(3, setting)]
    assert all(batch["x"].isfinite().all() for batch in batches)  # the loader's own is as it was


def test_nan_data_at_one_place_of_the_batch():
    kept = []

    class Keeps(Net):
        def training_step(self, batch, batch_idx):
            kept.append(batch)
            return super().training_step(batch, batch_idx)

    run(make_batches(6), [InjectFault("nan_data", step=3, target="x")], epochs=1, model=Keeps)
    assert kept[3]["x"].isnan().all()
    assert kept[3]["y"].isfinite().all()


def trained_on(*faults, **arguments):
    """The batches a model was given, epoch after epoch."""
    models = []
    outcome = run(
        labelled_batches(6), faults, model=lambda: models.append(Labelled()) or models[0], epochs=2, **arguments
    )
    return models[0].batches, outcome


@pytest.mark.parametrize("how", ["shuffle", "replace"])
def test_label_noise_hits_the_labels_alone_and_comes_back_with_its_batch(how):
    noisy, outcome = trained_on(InjectFault("label_noise", step=2, how=how))
    clean, expected = trained_on()
    for index, (one, other) in enumerate(zip(noisy, clean, strict=True)):
        assert torch.equal(one["labels"], other["labels"]) == (index not in (2, 8))
        assert torch.equal(one["x"], other["x"])
        assert torch.equal(one["mask"], other["mask"])
    assert torch.equal(noisy[2]["labels"], noisy[8]["labels"])
    if how == "shuffle":
        assert torch.equal(noisy[2]["labels"].sort().values, clean[2]["labels"].sort().values)
    assert int(noisy[2]["labels"].min()) >= 0
    assert int(noisy[2]["labels"].max()) <= 4
    assert outcome.random[0].equal(expected.random[0])


def test_label_noise_follows_its_seed():
    first, again, other = (
        trained_on(InjectFault("label_noise", step=2, seed=seed))[0][2]["labels"] for seed in (1, 1, 2)
    )
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_label_noise_at_one_place_leaves_other_integers_alone():
    noisy, _ = trained_on(InjectFault("label_noise", step=2, target="labels"))
    assert not torch.equal(noisy[2]["labels"], labelled_batches(6)[2]["labels"])


def test_a_batch_without_what_is_to_be_spoilt_is_named():
    with pytest.raises(ValueError, match=r"needs a tensor of integer numbers in the batch, and there is none"):
        run(make_batches(4), [InjectFault("label_noise", step=1)], epochs=1)
    with pytest.raises(ValueError, match=r"floating-point numbers in 'labels' of the batch"):
        run(labelled_batches(4), [InjectFault("nan_data", step=1, target="labels")], model=Labelled, epochs=1)


@pytest.mark.parametrize("model", [Net, ManualNet])
def test_a_dead_loss_scale_turns_gradients_to_nothing_in_16_bits(model):
    class Half(Callback):
        """The CPU's autocast casts the loss back; a gradient that has to pass through 16 bits is what underflows."""

        def on_train_start(self, trainer, pl_module):
            pl_module.layers[4].register_full_backward_hook(
                lambda module, grads, outputs: tuple(g if g is None else g.half().to(g.dtype) for g in grads)
            )

    watch, _ = watched(InjectFault("dead_loss_scale", step=3), Half(), model=model, plugins=[scaler_plugin()])
    assert watch.scales[2] == 64.0
    assert watch.scales[3:] == [2.0**-40] * 9
    first = "layers.0.weight"
    assert all(step[first].abs().sum() > 0 for step in watch.gradients[:3])
    assert all(step[first].abs().sum() == 0 for step in watch.gradients[3:])


def test_a_dead_loss_scale_without_a_scaler_is_refused():
    with pytest.raises(RuntimeError, match=r'needs a GradScaler, and precision "32-true" has none'):
        run(make_batches(3), [InjectFault("dead_loss_scale", step=1)])


class Sgd(Net):
    """An update is the learning rate times the gradient."""

    def __init__(self):
        super().__init__(lambda parameters: torch.optim.SGD(parameters, lr=0.01), epoch_schedule=True)


def test_the_learning_rate_drifts_from_its_step_on_and_no_schedule_forgets_it():
    class Moves(Watch):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            self.before = pl_module.get_parameter(WEIGHT).detach().clone()

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            moved = (self.before - pl_module.get_parameter(WEIGHT).detach()).double()
            self.rates.append(float(moved.norm() / self.gradients[-1][WEIGHT].double().norm()))

    watch, fault = Moves(), InjectFault("lr_drift", step=3, factor=1.5)
    outcome = run(make_batches(8), [watch, fault], model=Sgd, epochs=2)
    schedule = [0.01] * 8 + [0.005] * 8
    expected = [lr * 1.5 ** max(0, step - 2) for step, lr in enumerate(schedule)]
    assert watch.rates == pytest.approx(expected, rel=1e-2)
    assert [fired.step for fired in fault.fired] == list(range(3, 16))
    assert outcome.trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0025)  # the group's own is untouched
    assert not hasattr(outcome.trainer.optimizers[0], "_lightning_stable_step_gate")


MOMENTS = {
    "empty": lambda before, after: after == {},
    "zero_second": lambda before, after: (
        not after["exp_avg_sq"].any()
        and torch.equal(after["exp_avg"], before["exp_avg"])
        and after["step"] == before["step"]
    ),
    "scale": lambda before, after: (
        torch.equal(after["exp_avg"], 1e3 * before["exp_avg"])
        and torch.equal(after["exp_avg_sq"], 1e3 * before["exp_avg_sq"])
    ),
}


@pytest.mark.parametrize("how", MOMENTS)
def test_a_wiped_optimizer_has_lost_its_state_right_after_the_resume(tmp_path, how):
    states = []

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if not states:
                states.append(copy.deepcopy(trainer.optimizers[0].state.get(pl_module.get_parameter(WEIGHT), {})))

    path = tmp_path / "first.ckpt"
    first = run(make_batches(6), epochs=1, after=lambda trainer: trainer.save_checkpoint(path))
    fault = InjectFault("wiped_optimizer", step=0, how=how)
    run(make_batches(6), [fault, Look()], epochs=2, ckpt_path=path)
    index = [name for name, _ in Net().named_parameters()].index(WEIGHT)
    assert MOMENTS[how](first.optimizers[0]["state"][index], states[0])
    assert [(fired.global_step, fired.batch) for fired in fault.fired] == [(6, -1)]


def test_an_optimizer_is_not_wiped_without_a_resume_nor_before_its_step(tmp_path):
    path = tmp_path / "first.ckpt"
    fresh, early = InjectFault("wiped_optimizer", step=0), InjectFault("wiped_optimizer", step=7)
    run(make_batches(6), [fresh], epochs=1, after=lambda trainer: trainer.save_checkpoint(path))
    run(make_batches(6), [early], epochs=2, ckpt_path=path)
    assert fresh.fired == early.fired == []


@pytest.mark.parametrize(("kind", "number"), [("kill", signal.SIGKILL), ("terminate", signal.SIGTERM)])
def test_a_signal_is_sent_to_the_own_process_before_the_batch(monkeypatch, kind, number):
    sent = []
    monkeypatch.setattr(os, "kill", lambda process, what: sent.append((process, what, len(watch.losses))))
    watch = Watch()
    run(make_batches(6), [InjectFault(kind, step=3), watch], epochs=1)
    assert sent == [(os.getpid(), number, 3)]


def test_a_terminated_run_ends_in_lightnings_own_way():
    watch = Watch()
    with pytest.raises(SystemExit):
        run(make_batches(6), [InjectFault("terminate", step=3), watch], epochs=1)
    assert len(watch.losses) == 4  # the batch is finished


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["nan_activation", "nan_gradient", "nan_loss", "nan_data"])
def test_a_compiled_module_is_hit_as_a_whole(kind):
    fault = InjectFault(kind, step=2)
    run(make_batches(4), [fault, guard(SkipStep(times=9))], model=Compiled, epochs=1)
    assert [fired.step for fired in fault.fired] == [2]


def test_several_optimizers_are_hit_and_drift_all():
    watch, fault = Watch(), InjectFault("nan_loss", step=2)
    run(make_batches(6), [fault, watch], model=TwoOptimizers, epochs=1)
    assert [not_finite(loss) for loss in watch.losses[:6]] == [False] * 4 + [True] * 2
    assert len(fault.fired) == 1
    drift = InjectFault("lr_drift", step=2)
    outcome = run(make_batches(6), [drift], model=TwoOptimizers, epochs=1)
    assert len(outcome.trainer.optimizers) == 2
    assert len(drift.fired) == 4


def test_every_kind_has_a_test_here():
    source = Path(__file__).read_text(encoding="utf-8")
    assert all(f'"{kind}"' in source for kind in FAULT_KINDS)
