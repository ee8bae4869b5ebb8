# SPDX-License-Identifier: Apache-2.0
"""Runs that take turns: every one trains as if it were alone, and only the own steps are measured."""

import pytest
import torch
from lightning.pytorch import Callback, seed_everything
from lightning.pytorch.demos.boring_classes import BoringModel
from torch.utils.data import DataLoader

from lightning_stable.bench import interleaved
from lightning_stable.bench.interleaved import CYCLE, ratios, seconds_per_step
from tests.faulty_runs import Net, make_batches


class Order(Callback):
    """Notes whose step it is."""

    def __init__(self, name, order):
        self.name, self.order = name, order

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.order.append(self.name)


def make_run(name, order):
    def make():
        return Net(), DataLoader(make_batches(3 * CYCLE), batch_size=None), [Order(name, order)]

    return make


def test_the_runs_take_turns_of_ten_steps_and_all_of_them_train_alike():
    order = []
    seconds = seconds_per_step({name: make_run(name, order) for name in "abc"}, rounds=2)
    assert {name: len(values) for name, values in seconds.items()} == {"a": 2, "b": 2, "c": 2}
    assert all(value > 0 for values in seconds.values() for value in values)
    in_turns = order[: 3 * 3 * CYCLE]
    turns = [in_turns[i : i + 10] for i in range(0, len(in_turns), 10)]
    assert all(len(set(turn)) == 1 for turn in turns)
    assert all({turn[0] for turn in turns[i : i + 3]} == {"a", "b", "c"} for i in range(0, len(turns), 3))


def test_the_order_is_drawn_anew_and_can_be_repeated(monkeypatch):
    orders = []
    for seed in (0, 0, 1):
        orders.append([])
        seconds_per_step({name: make_run(name, orders[-1]) for name in "ab"}, rounds=1, seed=seed)
    assert orders[0] == orders[1] != orders[2]


def test_waiting_is_not_measured(monkeypatch):
    clock = iter(range(1000))
    monkeypatch.setattr(interleaved.time, "perf_counter", lambda: next(clock))
    seconds = seconds_per_step({name: make_run(name, []) for name in "ab"}, rounds=1)
    assert seconds == {"a": [5 / CYCLE], "b": [5 / CYCLE]}  # five turns of one tick each


def test_the_runs_train_as_they_do_alone():
    trained = {}

    def make(name, seed):
        def build():
            seed_everything(seed, verbose=False)
            model = trained[name] = BoringModel()  # draws no random numbers in training, which runs in turns share
            return model, DataLoader(torch.linspace(-1, 1, 3 * CYCLE * 32).view(-1, 32)), []

        return build

    seconds_per_step({"alone": make("alone", 0)}, rounds=1)
    seconds_per_step({"first": make("first", 0), "other": make("other", 1)}, rounds=1)
    pairs = zip(trained["alone"].state_dict().values(), trained["first"].state_dict().values(), strict=True)
    assert all(torch.equal(ours, theirs) for ours, theirs in pairs)


def test_an_error_in_a_run_is_raised_where_it_was_asked_for():
    def broken():
        raise ZeroDivisionError("no model")

    with pytest.raises(ZeroDivisionError, match="no model"):
        seconds_per_step({"a": broken}, rounds=1)


def test_ratios_are_taken_round_by_round_and_not_of_the_medians():
    assert ratios([1.0, 20.0, 300.0], [1.0, 10.0, 100.0])[1] == 2.0
    assert ratios([3.0], [2.0]) == (1.5, 1.5, 1.5)
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])
