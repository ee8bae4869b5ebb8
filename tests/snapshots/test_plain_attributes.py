# SPDX-License-Identifier: Apache-2.0
"""Attributes that are no parameters and no buffers are put back, by name and by content, as often as one likes."""

import random
from collections import OrderedDict, defaultdict, deque

import numpy as np
import torch

from lightning_stable.snapshots.plain_attributes import PlainAttributes, plain_attributes


class Layer(torch.nn.Linear):
    def __init__(self):
        super().__init__(2, 2)
        self.count = 0
        self.seen, self.last = [1], deque([1], maxlen=3)
        self.by_name, self.ordered, self.counts, self.names = {"a": 1}, OrderedDict(a=1), defaultdict(int), {"a"}
        self.mean = torch.zeros(2)
        self.generator = torch.Generator().manual_seed(1)

    def change(self):
        self.count += 1
        self.seen.append(2)
        self.last.append(2)
        self.by_name["b"] = self.ordered["b"] = self.counts["b"] = 2
        self.names.add("b")
        self.mean += 1
        self.born = True
        torch.rand(3, generator=self.generator)

    def all(self):
        kept = {name: value for name, value in vars(self).items() if not name.startswith("_") and name != "generator"}
        return str(kept), self.generator.get_state().tolist()


def test_everything_is_put_back_and_again():
    layer = Layer()
    before, mean, seen = layer.all(), layer.mean, layer.seen
    (kept,) = plain_attributes(layer)
    for _ in range(2):
        layer.change()
        assert layer.all() != before
        kept.put_back()
        assert layer.all() == before
    assert layer.mean is mean
    assert layer.seen is seen


def test_parameters_and_stand_ins_for_methods_are_left_alone():
    layer = Layer()
    (kept,) = plain_attributes(layer)
    with torch.no_grad():
        layer.weight.fill_(3.0)
    layer.forward = lambda x: x
    kept.put_back()
    assert (layer.weight == 3.0).all()
    assert "forward" in vars(layer)


def test_what_is_left_to_others_stays():
    layer = Layer()
    kept = PlainAttributes(layer, leave=["count"])
    layer.change()
    kept.put_back()
    assert layer.count == 1
    assert layer.seen == [1]


def test_a_tensor_made_under_inference_mode_is_no_obstacle():
    layer = Layer()
    with torch.inference_mode():
        layer.mean = torch.ones(2)
    (kept,) = plain_attributes(layer)
    kept.put_back()
    assert layer.mean.tolist() == [1.0, 1.0]


def test_random_numbers_of_any_kind_come_again():
    layer = Layer()
    layer.python, layer.old, layer.new = random.Random(1), np.random.RandomState(1), np.random.default_rng(1)

    def draw():
        return layer.python.random(), layer.old.rand(), layer.new.random(), torch.rand(1, generator=layer.generator)

    (kept,) = plain_attributes(layer)
    first = draw()
    for _ in range(2):
        kept.put_back()
        assert draw() == first
