# SPDX-License-Identifier: Apache-2.0
"""Optimizers take turns, each sees its own gradients, and what is to be measured of them is what runs."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from lightning_stable.bench import step_turns
from lightning_stable.bench.gradient_supply import WARM_UP, GradientSupply
from lightning_stable.bench.step_turns import Entry, take_turns

SHAPES = [(20, 10), (10,)]


class Watched(SGD):
    """Notes whose step it is, and which gradients there were; then spoils them, as some optimizers do."""

    def __init__(self, params, name, order):
        super().__init__(params, lr=0.0)
        self.name, self.order = name, order

    def step(self, closure=None):
        gradients = [parameter.grad for parameter in self.param_groups[0]["params"]]
        self.order.append((self.name, gradients[0].clone()))
        for gradient in gradients:
            gradient.fill_(torch.nan)


def supply():
    return GradientSupply(SHAPES, torch.device("cpu"))


def watched(name, order, kind="calm"):
    return Entry(name, lambda parameters: Watched(parameters, name, order), kind)


def test_the_order_moves_on_by_one_from_round_to_round():
    order = []
    take_turns([watched(name, order) for name in "abc"], supply(), rounds=3)
    names = "".join(name for name, _ in order)
    assert names == "abcbcacab" * 3 + "abc"  # six rounds to warm up, three that count; the last is for the memory


def test_each_takes_all_of_its_steps_with_the_gradients_it_should_have():
    order, own = [], supply()
    take_turns([watched("a", order), watched("b", order, "spiked")], own, rounds=4)
    for name, kind in (("a", "calm"), ("b", "spiked")):
        found = [gradient for each, gradient in order if each == name]
        assert len(found) == WARM_UP + 4 + 1
        for step, gradient in enumerate(found):
            own.give(kind, step)
            assert torch.equal(gradient, own.gradients[0])


def test_only_the_step_is_measured_and_the_warm_up_is_not_counted(monkeypatch):
    ticks = []

    def clock():
        ticks.append(None)
        return float(len(ticks))

    monkeypatch.setattr(step_turns.time, "perf_counter", clock)
    measured = take_turns([watched(name, []) for name in "ab"], supply(), rounds=3)
    assert {name: each.seconds for name, each in measured.items()} == {"a": [1.0] * 3, "b": [1.0] * 3}
    assert len(ticks) == 2 * 2 * (WARM_UP + 3)


def test_memory_is_that_of_each():
    own = supply()
    entries = [Entry("AdamW", AdamW), Entry("foreach", lambda each: AdamW(each, foreach=True)), Entry("SGD", SGD)]
    measured = take_turns(entries, own, rounds=1)
    assert measured["AdamW"].state_bytes == measured["foreach"].state_bytes == 8 * own.size + 2 * 4
    assert measured["foreach"].extra_bytes == pytest.approx(4 * own.size, abs=100)
    assert measured["SGD"].state_bytes == 0
    assert all(each.waits is None for each in measured.values())


def test_it_says_what_it_does():
    said = []
    take_turns([Entry("SGD", SGD)], supply(), rounds=2, progress=said.append)
    assert said == [f"warming up, {step} of 6" for step in range(6)] + ["round 0 of 2", "round 1 of 2", "memory of SGD"]


def test_an_optimizer_finds_gradients_when_it_is_made():
    def make(parameters):
        assert all(parameter.grad.abs().amax() > 0 for parameter in parameters)
        return SGD(parameters)

    take_turns([Entry("SGD", make)], supply(), rounds=1)


class FakeCuda:
    """Torch's switch, which raises when a step waits."""

    def __init__(self):
        self.modes = [0]

    def get_sync_debug_mode(self):
        return self.modes[-1]

    def set_sync_debug_mode(self, mode):
        self.modes.append(mode)


@pytest.mark.parametrize("waits", [True, False])
def test_a_step_that_waits_is_found_by_torchs_switch_which_is_put_back(waits, monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(step_turns.torch, "cuda", fake)

    def run():
        assert fake.modes[-1] == "error"
        if waits:
            raise RuntimeError("called a synchronizing CUDA operation")

    assert step_turns._waits(run) == waits
    assert fake.modes == [0, "error", 0]


def test_another_error_is_not_taken_for_waiting(monkeypatch):
    fake = FakeCuda()
    monkeypatch.setattr(step_turns.torch, "cuda", fake)

    def run():
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        step_turns._waits(run)
    assert fake.modes == [0, "error", 0]


def test_parameters_move():
    own = supply()
    before = [nn.Parameter(parameter.detach().clone()) for parameter in own.parameters]
    take_turns([Entry("SGD", lambda each: SGD(each, lr=1.0))], own, rounds=1)
    assert not any(map(torch.equal, before, own.parameters))
