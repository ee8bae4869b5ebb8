# SPDX-License-Identifier: Apache-2.0
"""What a monitor logs can be what the guard watches, wherever the two stand in the list of callbacks."""

import pytest
import torch
from torch import nn

from lightning_stable.detectors import LevelShift, MedianDeviation
from lightning_stable.guard import Halt, Rollback, SkipStep, SpikeGuard
from lightning_stable.guard.defaults import default_watch
from lightning_stable.monitors import AttentionEntropyMonitor
from tests.faulty_runs import TextNet, assert_same, make_batches, run
from tests.guard.test_spike_guard import without

MAX_LOGIT = "stability/attention_max_logit/max"
COUNT, BAD = 60, 45
RESPONSES = {
    "skip": lambda: SkipStep(times=9),
    "replay": lambda: Rollback(mode="replay", times=9),
    "many": lambda: SkipStep(times=99),
}
ORDERS = {
    "guard first": lambda guard, monitor: [guard, monitor],
    "monitor first": lambda guard, monitor: [monitor, guard],
}


class Sharpens(TextNet):
    """A bad batch makes keys and queries of the first block larger; the loss hardly sees it."""

    def __init__(self):
        super().__init__()
        self.factor = torch.ones(())
        self.gpt.blocks[0].attn_norm.register_forward_hook(lambda module, arguments, output: output * self.factor)

    def configure_optimizers(self):  # at ten times the rate, logits that begin near 0 double within 32 steps
        return torch.optim.AdamW(self.parameters(), lr=1e-3)

    def loss(self, batch):
        self.factor = batch["scale"].mean().sqrt()
        logits = self.gpt(batch["tokens"])
        return nn.functional.cross_entropy(logits.flatten(0, 1), batch["tokens"].flatten())


def batches(bad=()):
    """The factor of a bad batch is 1e4."""
    return make_batches(COUNT, bad, how="huge", kind="text")


def fit(data, order, response="skip", watch=None, model=Sharpens, **arguments):
    watch = {MAX_LOGIT: MedianDeviation(min_ratio=2.0)} if watch is None else watch
    guard = SpikeGuard(watch=watch, ladder=[RESPONSES[response](), Halt()], snapshot_every=8, warn={})
    callbacks = ORDERS[order](guard, AttentionEntropyMonitor(every_n_steps=1))
    return guard, run(data, callbacks, model=model, epochs=1, **arguments)


@pytest.mark.parametrize("order", ORDERS)
@pytest.mark.parametrize("response", ["skip", "replay"])
def test_a_spike_of_the_largest_attention_logit_is_answered_before_the_step(order, response):
    guard, actual = fit(batches({BAD}), order, response)
    assert [(one.signal, one.batches) for one in guard.incidents] == [(MAX_LOGIT, [BAD])]
    assert guard.incidents[0].value > 2 * guard.incidents[0].threshold
    assert_same(actual, run(without(batches(), {BAD}), model=Sharpens, epochs=1))


@pytest.mark.parametrize("order", ORDERS)
def test_a_healthy_run_has_no_such_spike(order):
    guard, actual = fit(batches(), order)
    assert guard.incidents == []
    assert_same(actual, run(batches(), model=Sharpens, epochs=1))


class LearnsFast(Sharpens):
    """Its logits begin near 0, and double within few steps."""

    configure_optimizers = TextNet.configure_optimizers


@pytest.mark.parametrize("order", ORDERS)
def test_with_a_floor_logits_that_grow_from_nothing_are_no_spike(order):
    """As README has it, beside loss and gradient norm."""
    floor = MedianDeviation(min_ratio=2.0, min_rise=5.0)
    guard, _ = fit(batches({BAD}), order, watch={**default_watch(), MAX_LOGIT: floor}, model=LearnsFast)
    assert [one.batches for one in guard.incidents] == [[BAD]]
    assert guard.incidents[0].signal == MAX_LOGIT
    guard, _ = fit(batches({BAD}), order, model=LearnsFast, response="many")
    assert len(guard.incidents) > 1


@pytest.mark.parametrize("order", ORDERS)
def test_of_a_window_it_is_the_last_micro_batch_that_counts(order):
    guard, _ = fit(
        batches({41}),
        order,
        watch={MAX_LOGIT: MedianDeviation(min_ratio=2.0, min_rise=5.0, warmup=10)},
        accumulate_grad_batches=2,
    )
    assert [one.batches for one in guard.incidents] == [[40, 41]]
    guard, _ = fit(
        batches({40}),
        order,
        watch={MAX_LOGIT: MedianDeviation(min_ratio=2.0, min_rise=5.0, warmup=10)},
        accumulate_grad_batches=2,
    )
    assert guard.incidents == []


@pytest.mark.parametrize("order", ORDERS)
def test_it_can_be_warned_of_too(order):
    guard = SpikeGuard(watch={}, warn={MAX_LOGIT: LevelShift(block=2, blocks=2, min_rise=100.0)})
    with pytest.warns(UserWarning, match=f"SpikeGuard: step .*: {MAX_LOGIT} .*raised by LevelShift. Nothing was done"):
        run(
            batches(range(40, COUNT)),
            ORDERS[order](guard, AttentionEntropyMonitor(every_n_steps=1)),
            model=Sharpens,
            epochs=1,
        )
    assert [one.signal for one in guard.warnings] == [MAX_LOGIT]
    assert guard.incidents == []
