# SPDX-License-Identifier: Apache-2.0
"""The promise: a guarded run equals, bit for bit, one whose loader never held the bad batches."""

from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch.accelerators import CPUAccelerator
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy

from lightning_stable.detectors import MedianDeviation, NonFinite
from lightning_stable.guard import Halt, Rollback, SkipStep, SpikeGuard, TrainingHalted
from tests.faulty_runs import ManualNet, Net, TextNet, assert_same, make_batches, run
from tests.guard_from_yaml import guard_from_yaml

COUNT = 12


def guard(*responses, **arguments):
    watch = {
        "loss": MedianDeviation(warmup=3, min_rise=100.0),
        "grad_norm": MedianDeviation(warmup=3, min_ratio=1000.0),
    }
    return SpikeGuard(watch=watch, ladder=[*responses, Halt()], **arguments)


def without(batches, left_out):
    return [batch for index, batch in enumerate(batches) if index not in left_out]


def scaler_plugin():
    return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=64.0, growth_interval=5))


def adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2)


def fused_adamw(parameters):
    return torch.optim.AdamW(parameters, lr=1e-2, fused=True)


def sgd(parameters):
    return torch.optim.SGD(parameters, lr=1e-2, momentum=0.9)


def rmsprop(parameters):
    return torch.optim.RMSprop(parameters, lr=1e-3, momentum=0.9)


SETTINGS = {
    "fp32": {},
    "epoch schedule": {"model": lambda: Net(epoch_schedule=True)},
    "bf16-mixed": {"precision": "bf16-mixed"},
    "64-true": {"precision": "64-true"},
    "16-mixed": {"plugins": scaler_plugin},
    "16-mixed fused": {"plugins": scaler_plugin, "model": lambda: Net(fused_adamw)},
    "fused": {"model": lambda: Net(fused_adamw)},
    "sgd": {"model": lambda: Net(sgd)},
    "rmsprop": {"model": lambda: Net(rmsprop)},
    "clipped": {"gradient_clip_val": 0.1},
    "manual": {"model": ManualNet},
    "manual 16-mixed": {"model": ManualNet, "plugins": scaler_plugin},
    "two workers": {"num_workers": 2},
    "gpt": {"model": TextNet},
}
BAD = {"middle": {5}, "first": {0}, "last": {COUNT - 1}, "three in a row": {4, 5, 6}, "both ends": {0, COUNT - 1}}


def arguments_of(setting):
    arguments = dict(SETTINGS[setting])
    if "plugins" in arguments:
        arguments["plugins"] = [arguments["plugins"]()]
    return arguments


def kind_of(setting):
    return "text" if setting == "gpt" else "net"


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("where", BAD)
def test_a_skipped_step_never_happened(setting, where):
    bad = BAD[where]
    guarded = guard(SkipStep(times=99))
    actual = run(make_batches(COUNT, bad, kind=kind_of(setting)), [guarded], **arguments_of(setting))
    expected = run(without(make_batches(COUNT, kind=kind_of(setting)), bad), **arguments_of(setting))
    assert_same(actual, expected)
    assert len(guarded.incidents) == 2 * len(bad)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize("where", BAD)
def test_a_replay_leaves_out_the_bad_batches_only(setting, where):
    bad = BAD[where]
    guarded = guard(Rollback(mode="replay", times=99), snapshot_every=4)
    actual = run(make_batches(COUNT, bad, kind=kind_of(setting)), [guarded], **arguments_of(setting))
    expected = run(without(make_batches(COUNT, kind=kind_of(setting)), bad), **arguments_of(setting))
    assert_same(actual, expected)
    assert len(guarded.incidents) == 2 * len(bad)


@pytest.mark.parametrize("setting", SETTINGS)
@pytest.mark.parametrize(
    ("bad", "left_out"), [({6}, {4, 5, 6}), ({0}, {0}), ({COUNT - 1}, {8, 9, 10, 11}), ({5, 6}, {4, 5, 6})]
)
def test_a_rollback_that_skips_leaves_out_everything_since_the_snapshot(setting, bad, left_out):
    guarded = guard(Rollback(mode="skip", times=99), snapshot_every=4)
    actual = run(make_batches(COUNT, bad, kind=kind_of(setting)), [guarded], **arguments_of(setting))
    expected = run(without(make_batches(COUNT, kind=kind_of(setting)), left_out), **arguments_of(setting))
    assert_same(actual, expected)


@pytest.mark.parametrize("response", [SkipStep(times=99), Rollback(mode="replay", times=99)])
@pytest.mark.parametrize(
    ("bad", "window"), [({5}, {4, 5}), ({0}, {0, 1}), ({11}, {10, 11}), ({2, 5, 6}, {2, 3, 4, 5, 6, 7})]
)
def test_the_whole_accumulation_window_is_left_out(response, bad, window):
    arguments = {"accumulate_grad_batches": 2}
    actual = run(make_batches(COUNT, bad), [guard(response, snapshot_every=3)], **arguments)
    assert_same(actual, run(without(make_batches(COUNT), window), **arguments))


@pytest.mark.parametrize("response", [SkipStep(times=99), Rollback(mode="replay", times=99)])
@pytest.mark.parametrize(
    ("count", "accumulate", "bad", "left_out"),
    [
        (13, 2, {12}, {12}),
        (13, 2, {10, 12}, {10, 11, 12}),
        (13, 2, {8, 12}, {8, 9, 12}),
        (11, 3, {10}, {9, 10}),
        (13, 4, {12}, {12}),
    ],
)
def test_a_last_window_that_is_shorter_is_left_out_and_the_others_stay_as_they_were(
    response, count, accumulate, bad, left_out
):
    arguments = {"accumulate_grad_batches": accumulate}
    actual = run(make_batches(count, bad), [guard(response, snapshot_every=3)], **arguments)
    assert_same(actual, run(without(make_batches(count), left_out), **arguments))


@pytest.mark.parametrize("response", [SkipStep(times=99), Rollback(mode="replay", times=99)])
def test_a_finite_spike_is_left_out_just_as_a_nan(response):
    bad = {7, 10}
    guarded = guard(response, snapshot_every=4)
    actual = run(make_batches(COUNT, bad, how="huge"), [guarded])
    assert_same(actual, run(without(make_batches(COUNT), bad)))
    assert {incident.signal for incident in guarded.incidents} <= {"loss", "grad_norm"}


@pytest.mark.parametrize("setting", SETTINGS)
def test_a_healthy_run_is_the_same_with_and_without_the_guard(setting):
    batches = make_batches(COUNT, kind=kind_of(setting))
    guarded = guard(SkipStep(), Rollback(mode="replay"), snapshot_every=3)
    actual = run(batches, [guarded], **arguments_of(setting))
    assert_same(actual, run(batches, **arguments_of(setting)))
    assert guarded.incidents == []


def test_the_default_guard_survives_spikes_of_both_kinds():
    guarded = SpikeGuard()
    batches = make_batches(120, {60}) + make_batches(120, {60}, how="huge")
    clean = make_batches(120) + make_batches(120)
    actual = run(batches, [guarded], epochs=1)
    assert [incident.response for incident in guarded.incidents] == ["SkipStep", "SkipStep"]
    assert_same(actual, run([batch for index, batch in enumerate(clean) if index not in (60, 180)], epochs=1))


def test_a_run_that_keeps_failing_ends_at_halt_with_good_weights(capsys):
    guarded = guard(SkipStep(times=2), Rollback(times=1))
    bad = set(range(5, COUNT))
    holder = []
    with pytest.raises(TrainingHalted, match="halted the run after 4 incidents") as caught:
        run(make_batches(COUNT, bad), [guarded], model=lambda: holder.append(Net()) or holder[0])
    assert [incident.response for incident in guarded.incidents] == ["SkipStep", "SkipStep", "Rollback", "Halt"]
    assert "What to try" in caught.value.report
    assert all(value.isfinite().all() for value in holder[0].state_dict().values())
    assert "1 Halt" in capsys.readouterr().out


def test_a_run_that_forgives_can_go_on_for_ever():
    bad = set(range(3, 36, 4))
    guarded = guard(SkipStep(times=1), forgive_after=3)
    run(make_batches(36, bad), [guarded], epochs=1)
    assert [incident.response for incident in guarded.incidents] == ["SkipStep"] * len(bad)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the scaler's own skip of the first step
def test_an_overflow_with_a_finite_loss_is_left_to_the_gradient_scaler():
    class Overflows(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 1e4

    def plugin():
        return MixedPrecision("16-mixed", "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=2.0**100))

    guarded = SpikeGuard(watch={}, ladder=[SkipStep(times=99), Halt()])
    actual = run(make_batches(COUNT), [guarded], model=Overflows, plugins=[plugin()])
    assert_same(actual, run(make_batches(COUNT), model=Overflows, plugins=[plugin()]))
    assert guarded.incidents == []
    assert actual.scaler["scale"] < 2.0**100


def test_any_logged_key_can_be_watched():
    class Logs(Net):
        def training_step(self, batch, batch_idx):
            self.log("far_away", float("nan") if batch_idx == 7 else 1.0)
            return super().training_step(batch, batch_idx)

    guarded = SpikeGuard(watch={"far_away": NonFinite()}, ladder=[SkipStep(times=9), Halt()])
    run(make_batches(COUNT), [guarded], model=Logs, epochs=1)
    assert [(incident.signal, incident.batches) for incident in guarded.incidents] == [("far_away", [7])]


def test_a_watched_key_that_is_never_logged_is_named_once():
    guarded = SpikeGuard(watch={"los": NonFinite()})
    with pytest.warns(UserWarning, match=r"watches a key that has not been logged so far") as warned:
        run(make_batches(COUNT), [guarded], epochs=3)
    assert len([w for w in warned if "'los'" in str(w.message)]) == 1


class TwoOptimizers(Net):
    """Two halves with an optimizer each, stepped one after the other."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False

    def configure_optimizers(self):
        first, second = self.layers[0], self.layers[4]
        return torch.optim.SGD(first.parameters(), lr=0.01), torch.optim.Adam(second.parameters(), lr=0.01)

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = torch.nn.functional.mse_loss(self(batch["x"]), batch["y"])
            optimizer.zero_grad()
            self.manual_backward(loss)
            optimizer.step()


@pytest.mark.parametrize("response", [SkipStep(times=99), Rollback(mode="replay", times=99)])
def test_several_optimizers_by_hand_are_all_kept_still(response):
    actual = run(make_batches(COUNT, {5}), [guard(response, snapshot_every=4)], model=TwoOptimizers)
    assert_same(actual, run(without(make_batches(COUNT), {5}), model=TwoOptimizers))


def test_trainer_and_optimizer_are_left_as_they_were_found():
    holder = []
    outcome = run(make_batches(COUNT, {5}), [guard(SkipStep())], model=lambda: holder.append(Net()) or holder[0])
    optimizer = holder[0].optimizers().optimizer
    assert "Tapped" not in type(outcome.trainer.fit_loop._data_fetcher).__name__
    assert not hasattr(optimizer, "_lightning_stable_step_gate")
    assert "_load_combined_loader_states" not in vars(outcome.trainer.fit_loop)


def test_the_same_guard_fits_twice():
    guarded = guard(SkipStep(times=99))
    for _ in range(2):
        run(make_batches(COUNT, {5}), [guarded], epochs=1)
    assert len(guarded.incidents) == 2


def test_its_ladder_can_be_read():
    ladder = [SkipStep(times=2), Halt()]
    guarded = SpikeGuard(ladder=ladder, forgive_after=7)
    assert guarded.ladder.rungs == ladder
    assert guarded.ladder.forgive_after == 7


def test_it_constructs_from_yaml():
    made = guard_from_yaml(
        """
        watch:
          loss: {class_path: lightning_stable.detectors.MedianDeviation, init_args: {threshold: 6.0}}
        ladder:
          - {class_path: lightning_stable.guard.SkipStep, init_args: {times: 5}}
          - class_path: lightning_stable.guard.Halt
        snapshot_every: 7
        """
    )
    assert made._ladder.rungs[0].times == 5
    assert made._signals._watch["loss"].threshold == 6.0


@pytest.mark.parametrize(
    ("make", "error", "message"),
    [
        (
            lambda: SpikeGuard(snapshot_every=0),
            ValueError,
            r"`SpikeGuard\(snapshot_every=...\)` must be at least 1, got 0",
        ),
        (lambda: SpikeGuard(ladder=[]), ValueError, r"`SpikeGuard\(ladder=...\)` must hold at least one response"),
        (lambda: SpikeGuard(watch={"loss": 3}), TypeError, r"'loss' must map to a detector, got 3"),
        (lambda: SpikeGuard(forgive_after=-1), ValueError, r"must be at least 1 or None, got -1"),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_its_bound(make, error, message):
    with pytest.raises(error, match=message):
        make()


def test_what_cannot_work_is_refused_before_anything_runs():
    with pytest.raises(ValueError, match=r"`SpikeGuard` must come before `EMAWeightAveraging`"):
        run(make_batches(3), [EMAWeightAveraging(), SpikeGuard()])
    with pytest.raises(RuntimeError, match="more than one stateful callback"):
        run(make_batches(3), [SpikeGuard(), SpikeGuard()])
    with pytest.raises(ValueError, match="cannot veto LBFGS"):
        run(make_batches(3), [SpikeGuard()], model=lambda: Net(torch.optim.LBFGS))


def test_parameters_that_are_sharded_in_an_unknown_way_are_refused():
    strategy = FSDPStrategy(accelerator=CPUAccelerator(), parallel_devices=[torch.device("cpu")] * 2)
    trainer = SimpleNamespace(strategy=strategy, world_size=2, callbacks=[])
    with pytest.raises(RuntimeError, match=r"how `FSDPStrategy` shards .* over 2 ranks. Use .*`ModelParallelStrategy`"):
        SpikeGuard().setup(trainer, Net(), "fit")


class TakesAnIterator(Net):
    def training_step(self, dataloader_iter):
        batch, batch_idx, _ = next(dataloader_iter)
        return super().training_step(batch, batch_idx)


@pytest.mark.filterwarnings("ignore:.*dataloader_iter.*", "ignore:.*The first argument of.*")
def test_a_step_that_fetches_for_itself_can_be_skipped_but_not_replayed():
    with pytest.raises(ValueError, match=r"needs a `training_step` that takes a batch"):
        run(make_batches(COUNT, {5}), [guard(Rollback(mode="replay"))], model=TakesAnIterator)


def test_a_dry_run_and_a_run_without_training_are_fine():
    run(make_batches(COUNT, {0}), [guard(SkipStep())], fast_dev_run=2)
    run(make_batches(COUNT), [guard(SkipStep())], limit_train_batches=0)
