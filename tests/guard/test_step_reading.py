# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.guard import SkipStep
from lightning_stable.guard.step_reading import StepReading, _combined, describe, gradient_norm
from tests.faulty_runs import ManualNet, Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import COUNT, TwoOptimizers, guard, scaler_plugin, without
from tests.monitors.attentive_runs import Remembers


def test_the_gradient_norm_is_that_of_all_gradients_together():
    parameters = [
        torch.nn.Parameter(torch.zeros(3, 2)),
        torch.nn.Parameter(torch.zeros(5)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    optimizer = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=0.1)
    assert gradient_norm(optimizer).item() == 0.0  # no gradients at all
    parameters[0].grad = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).T  # not contiguous
    parameters[1].grad = torch.arange(5.0)
    flat = torch.cat([parameters[0].grad.double().flatten(), parameters[1].grad.double()])
    assert gradient_norm(optimizer).item() == pytest.approx(math.sqrt((flat**2).sum().item()), rel=1e-6)
    parameters[2].grad = torch.tensor([math.nan])
    assert math.isnan(gradient_norm(optimizer).item())


def row(share, loss=None, bad=0.0, sigterm=0.0, **logged):
    keys = [logged.get("a"), logged.get("b")]
    numbers = [number for value in keys for number in ((0.0, 0.0) if value is None else (1.0, value))]
    return [share, bad, sigterm, 0.0 if loss is None else 1.0, loss or 0.0, *numbers]


def combined(*rows, factor=1.0, unscale=1.0, scale=1.0):
    return _combined(list(rows), ["a", "b"], factor, unscale, scale)


def test_ranks_are_combined_to_one_reading():
    reading = combined(row(9.0, 2.0, a=1.0), row(16.0, 4.0, a=3.0, b=7.0), factor=0.5, unscale=10.0, scale=10.0)
    assert reading == StepReading(loss=1.5, norm=0.5, scale=10.0, largest_loss=2.0, logged={"a": 2.0, "b": 7.0}, rank=1)


def test_one_rank_that_is_told_to_end_is_enough():
    assert combined(row(1.0, 2.0), row(1.0, 2.0, sigterm=1.0)).sigterm
    assert not combined(row(1.0, 2.0), row(1.0, 2.0)).sigterm


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_rank_that_is_not_finite_is_enough_and_is_named(bad):
    reading = combined(row(1.0, 9.0), row(1.0, bad), row(1.0, 3.0))
    assert not reading.is_finite
    assert reading.rank == 1
    assert not math.isfinite(reading.largest_loss)


def test_losses_that_are_not_finite_are_counted_over_the_ranks():
    reading = combined(row(1.0, math.nan, bad=2.0), row(1.0, 3.0), row(1.0, math.inf, bad=1.0))
    assert reading.non_finite_losses == 3


def test_a_rank_without_a_loss_does_not_count():
    assert combined(row(1.0), row(1.0, 3.0)).loss == 3.0
    assert combined(row(1.0), row(1.0)).loss is None
    assert combined(row(1.0), row(1.0)).rank is None


def test_an_overflow_is_the_scalers_only_while_the_loss_is_finite():
    assert StepReading(loss=1.0, norm=math.inf, scale=2.0).is_overflow
    assert not StepReading(loss=math.nan, norm=math.inf, scale=2.0).is_overflow
    assert not StepReading(loss=1.0, norm=math.inf, scale=1.0).is_overflow
    assert not StepReading(loss=1.0, norm=3.0, scale=2.0).is_overflow


def test_the_first_parameters_are_named_and_the_others_counted():
    assert describe({"a": 1}) == "1 gradient entry is not finite, in a"
    assert describe({"a": 1, "b": 2, "c": 3}) == "6 gradient entries are not finite, in a, b, c"
    assert describe({"a": 1, "b": 2, "c": 3, "d": 4}) == "10 gradient entries are not finite, in a, b, c and 1 more"


class Spoils(Callback):
    """Changes the gradients of the given batch, behind backward."""

    def __init__(self, spoil, at=5):
        self.spoil, self.at, self.batch = spoil, at, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch_idx

    def on_after_backward(self, trainer, pl_module):
        if self.batch == self.at:
            self.spoil(pl_module.layers[0])


def four_entries(layer):
    layer.weight.grad[0, :3] = math.nan
    layer.bias.grad[1] = -math.inf


def counts(logger, what):
    return {step: sent[f"stability/{what}"] for step, sent in logger.sent.items() if f"stability/{what}" in sent}


@pytest.mark.parametrize("model", [Net, ManualNet])
def test_entries_that_are_not_finite_are_counted_named_and_logged_with_every_logged_step(model):
    logger, guarded = Remembers(), guard(SkipStep())
    actual = run(make_batches(COUNT), [Spoils(four_entries), guarded], model=model, logger=logger, epochs=1)
    assert counts(logger, "non_finite_gradients") == {step: 4 if step == 5 else 0 for step in range(COUNT)}
    assert counts(logger, "non_finite_losses") == dict.fromkeys(range(COUNT), 0)
    assert [one.notes for one in guarded.incidents] == [
        ["4 gradient entries are not finite, in layers.0.weight, layers.0.bias"]
    ]
    assert_same(actual, run(without(make_batches(COUNT), {5}), model=model, epochs=1))


def test_an_infinite_norm_of_finite_gradients_counts_none():
    logger, guarded = Remembers(), guard(SkipStep())
    run(make_batches(COUNT), [Spoils(lambda layer: layer.weight.grad.fill_(1e30)), guarded], logger=logger, epochs=1)
    assert [(one.value, one.notes) for one in guarded.incidents] == [(math.inf, [])]
    assert set(counts(logger, "non_finite_gradients").values()) == {0}


def test_entries_of_several_optimizers_have_the_names_of_the_module():
    guarded = guard(SkipStep())
    run(make_batches(COUNT, {5}), [guarded], model=TwoOptimizers, epochs=1)
    assert guarded.incidents[0].notes == ["144 gradient entries are not finite, in layers.0.weight, layers.0.bias"]


def test_micro_batches_whose_loss_is_not_finite_are_counted_over_the_window():
    logger = Remembers()
    batches = make_batches(12, {4, 5, 9})
    run(batches, [guard(SkipStep())], logger=logger, accumulate_grad_batches=3, epochs=1)
    assert counts(logger, "non_finite_losses") == {0: 0, 1: 2, 2: 0, 3: 1}


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the scaler's own skip of the first step
def test_overflows_are_left_to_the_scaler_and_counted(capsys):
    logger, guarded = Remembers(), guard(SkipStep())
    spoils = Spoils(four_entries)
    arguments = {"plugins": [scaler_plugin()], "logger": logger, "epochs": 2}
    run(make_batches(COUNT), [spoils, guarded], **arguments)
    assert guarded.incidents == []
    assert counts(logger, "overflows") == {step: (step >= 5) + (step >= 5 + COUNT) for step in range(2 * COUNT)}
    assert counts(logger, "non_finite_gradients")[5] == 4
    assert "overflows left to the scaler 2" in " ".join(capsys.readouterr().out.replace("│", " ").split())
    again = guard(SkipStep())
    again.load_state_dict(guarded.state_dict())
    assert again.state_dict()["journal"]["overflows"] == 2


def test_without_a_scaler_nothing_is_said_of_overflows():
    logger = Remembers()
    run(make_batches(COUNT), [guard(SkipStep())], logger=logger, epochs=1)
    assert counts(logger, "overflows") == {}
