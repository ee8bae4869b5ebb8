# SPDX-License-Identifier: Apache-2.0
import inspect

import jsonargparse
import pytest
import torch
from lightning.pytorch import Callback

import lightning_stable.guard as room
from lightning_stable.guard import (
    ClipStep,
    Halt,
    ResetMomentum,
    Response,
    Rollback,
    ScaleLR,
    SkipStep,
    TrainingHalted,
)
from tests.faulty_runs import Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import COUNT, TwoOptimizers, fused_adamw, guard, scaler_plugin

RESPONSES = [
    member
    for _, member in inspect.getmembers(room, inspect.isclass)
    if issubclass(member, Response) and not inspect.isabstract(member)
]


class Recorder:
    """Writes down what it is asked for."""

    def __init__(self):
        self.calls = []

    def __getattr__(self, name):
        def call(*args, **kwargs):
            self.calls.append((name, *args, *kwargs.values()))
            return [name]

        return call


@pytest.mark.parametrize(
    ("response", "calls"),
    [
        (SkipStep(), [("undo_step", False)]),
        (SkipStep(count_skipped=True), [("undo_step", True)]),
        (ClipStep(), [("clip_step",)]),
        (ScaleLR(factor=0.25), [("undo_step", False), ("scale_lr", 0.25, None)]),
        (ScaleLR(recover_after=9), [("undo_step", False), ("scale_lr", 0.5, 9)]),
        (ResetMomentum(moments="all"), [("undo_step", False), ("reset_momentum", "all")]),
        (Halt(), [("undo_step", False)]),
    ],
)
def test_a_response_asks_for_what_it_is_named_after(response, calls):
    recorder = Recorder()
    assert response.respond(recorder) == [name for name, *_ in calls]
    assert recorder.calls == calls


@pytest.mark.parametrize("kind", RESPONSES, ids=lambda kind: kind.__name__)
def test_it_constructs_without_arguments_and_from_yaml(kind):
    assert kind().times >= 1
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--response", type=Response)
    config = parser.parse_args([f"--response={kind.__module__}.{kind.__name__}"])
    assert type(parser.instantiate(config).response) is kind


def test_only_what_goes_back_needs_snapshots():
    assert [kind.__name__ for kind in RESPONSES if kind().needs_snapshots] == ["Rollback", "SkipData"]
    assert not Rollback(mode="skip").needs_replay
    assert Rollback(mode="replay").needs_replay


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SkipStep(times=0), r"`SkipStep\(times=...\)` must be at least 1, got 0"),
        (lambda: ClipStep(times=-1), r"`ClipStep\(times=...\)` must be at least 1, got -1"),
        (lambda: ScaleLR(recover_after=0), r"`ScaleLR\(recover_after=...\)` must be at least 1 or None, got 0"),
        (lambda: ScaleLR(factor=1.0), r"`ScaleLR\(factor=...\)` must lie between 0 and 1, both excluded, got 1.0"),
        (lambda: ScaleLR(factor=float("nan")), "got nan"),
        (lambda: ResetMomentum(moments="second"), r"""must be "first" or "all", got 'second'"""),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_its_bound(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_exception_carries_its_report():
    with pytest.raises(TrainingHalted, match="why") as caught:
        raise TrainingHalted("why")
    assert caught.value.report == "why"


# ClipStep: the step is that of a run in which somebody multiplied the gradients by the same ratio


class Multiply(Callback):
    """What `ClipStep` is said to do, by hand: `ratios` is from batch index and optimizer to factor."""

    def __init__(self, ratios):
        self.ratios = ratios

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch_idx = batch_idx

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        ratio = self.ratios.get((self.batch_idx, trainer.optimizers.index(optimizer)))
        for group in optimizer.param_groups if ratio else ():
            for parameter in group["params"]:
                parameter.grad.mul_(ratio)


class Norms(Callback):
    """The norm of every step's gradients, as the guard reads it."""

    def __init__(self):
        self.norms = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        norm = torch.nn.utils.get_total_norm(gradients).item()
        scaler = getattr(trainer.precision_plugin, "scaler", None)
        self.norms.append(norm / scaler.get_scale() if scaler and optimizer.defaults["fused"] else norm)


def median(numbers):
    ordered, middle = sorted(numbers), len(numbers) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2


CLIPPED = {
    "fp32": {},
    "16-mixed": {"plugins": scaler_plugin},
    "16-mixed fused": {"plugins": scaler_plugin, "model": lambda: Net(fused_adamw)},
    "accumulated": {"accumulate_grad_batches": 2},
    "clipped afterwards": {"gradient_clip_val": 0.1},
    "bf16-mixed": {"precision": "bf16-mixed"},
}


def made(setting):
    arguments = dict(CLIPPED[setting])
    if "plugins" in arguments:
        arguments["plugins"] = [arguments["plugins"]()]
    return arguments


@pytest.mark.parametrize("setting", CLIPPED)
def test_a_clipped_step_has_the_typical_norm_and_is_a_step_like_any_other(setting):
    batches, norms = make_batches(COUNT), Norms()
    batches[7]["y"] *= 100  # enough for a spike, and not for an overflow in 16 bits
    guarded = guard(ClipStep(times=9))
    actual = run(batches, [norms, guarded], epochs=1, **made(setting))
    (incident,) = guarded.incidents
    spiked = 3 if setting == "accumulated" else 7
    typical = median(norms.norms[:spiked])
    assert incident.norm_before == norms.norms[spiked]
    assert incident.norm_after == pytest.approx(typical, rel=1e-6)
    assert incident.restored == [f"gradients x {typical / incident.norm_before:.4g}"]
    assert (incident.response, incident.steps_skipped, incident.steps_rolled_back) == ("ClipStep", 0, 0)
    ratio = typical / norms.norms[spiked]
    assert_same(actual, run(batches, [Multiply({(7, 0): ratio})], epochs=1, **made(setting)))
    assert len(guarded._signals.state_dict()["norms"]["grad_norm"]) == len(norms.norms) - 1  # without the spike
    assert len(guarded._signals.state_dict()["detectors"]["loss"]["values"]) == len(norms.norms) - 1


@pytest.mark.parametrize("how", ["nan", "first step"])
def test_what_cannot_be_clipped_goes_to_the_next_rung_and_costs_nothing(how):
    bad = {0} if how == "first step" else {7}
    guarded = guard(ClipStep(times=1), SkipStep(times=9), forgive_after=None)
    run(make_batches(COUNT, bad), [guarded], epochs=1)
    assert [incident.response for incident in guarded.incidents] == ["SkipStep"]
    assert guarded._ladder.state_dict()["used"] == [0, 1, 0]


def test_a_spike_of_the_loss_alone_is_not_clipped():
    class Shifts(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) + 1e6 * (batch_idx == 7)

    batches = make_batches(COUNT)
    batches[7] = {key: value * 1e-3 for key, value in batches[7].items()}  # small gradients
    guarded = guard(ClipStep(), SkipStep())
    run(batches, [guarded], model=Shifts, epochs=1)
    assert [(incident.signal, incident.response) for incident in guarded.incidents] == [("loss", "SkipStep")]


class HugeSecond(TwoOptimizers):
    """Both optimizers get gradients 1e4 times too large in batch 7, one after the other."""

    def training_step(self, batch, batch_idx):
        for optimizer in self.optimizers():
            loss = torch.nn.functional.mse_loss(self(batch["x"]), batch["y"])
            optimizer.zero_grad()
            self.manual_backward(loss * (1e4 if batch_idx == 7 else 1.0))
            optimizer.step()


def test_each_of_several_optimizers_is_clipped_to_its_own_norm_and_counts_once():
    seen = {0: [], 1: []}

    class Reads(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
            seen[trainer.optimizers.index(optimizer)].append(torch.nn.utils.get_total_norm(gradients).item())

    guarded = guard(ClipStep(times=1))
    actual = run(make_batches(COUNT), [Reads(), guarded], model=HugeSecond, epochs=1)
    ratios = {(7, index): median(norms[:7]) / norms[7] for index, norms in seen.items()}
    assert len(guarded.incidents) == 1
    assert len(guarded.incidents[0].restored) == 2
    assert_same(actual, run(make_batches(COUNT), [Multiply(ratios)], model=HugeSecond, epochs=1))


# ScaleLR: the way back up


class Rates(Callback):
    def __init__(self):
        self.rates = []

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_pre_hook(
            lambda optimizer, *_: self.rates.append(optimizer.param_groups[0]["lr"])
        )


class Constant(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=1e-3)


def test_the_learning_rate_rises_again_and_a_spike_stops_it():
    rates = Rates()
    run(
        make_batches(18, {2, 9}),
        [guard(ScaleLR(factor=0.25, times=1, recover_after=4), SkipStep(times=9), forgive_after=None), rates],
        model=Constant,
        epochs=1,
    )
    low, rise = [0.25] * 4, [0.25 ** (3 / 4), 0.25 ** (1 / 2)]
    stopped = 0.25 ** (1 / 4)  # the rate of the step that spiked
    again = [stopped ** (3 / 4), stopped ** (1 / 2), stopped ** (1 / 4), 1.0]
    expected = [1.0] * 2 + low + rise + [stopped] * 4 + again
    assert [rate / 1e-3 for rate in rates.rates] == pytest.approx(expected)
