# SPDX-License-Identifier: Apache-2.0
"""Attributes that are no parameters and no buffers are put back, by name and by content, as often as one likes."""

import random
import threading
from collections import Counter, OrderedDict, defaultdict, deque
from types import SimpleNamespace

import numpy as np
import torch
from torch.utils.data import TensorDataset

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


class Meter:
    def __init__(self):
        self.total, self.values, self.generator = 0.0, {"all": [0.5]}, random.Random(3)

    def change(self):
        self.total += 1
        self.values["all"].append(self.generator.random())
        self.values["last"] = self.total


class Live(Meter):
    """A file would do as well."""

    def __init__(self):
        super().__init__()
        self.lock = threading.Lock()


def test_what_is_within_containers_is_put_back_to_any_depth():
    mean = torch.zeros(2)
    owner = SimpleNamespace(
        history={"loss": [], "means": (mean, deque([{1}])), "meters": [Meter()]}, table=np.zeros(3), counts=Counter("a")
    )
    before, inner = repr_of(owner), owner.history["loss"]
    owner.history["itself"] = owner.history
    kept = PlainAttributes(owner)
    for _ in range(2):
        owner.history["loss"].append(0.5)
        owner.history["means"][1][0].add(2)
        owner.history["meters"][0].change()
        owner.history["born"] = owner.history.pop("loss")
        mean += 1
        owner.table += 1
        owner.counts.update("ab")
        kept.put_back()
        assert owner.history.pop("itself") is owner.history
        assert repr_of(owner) == before
        owner.history["itself"] = owner.history
    assert owner.history["loss"] is inner
    assert owner.history["means"][0] is mean


def repr_of(owner):
    meter = owner.history["meters"][0]
    return repr([{**owner.history, "meters": None}, vars(meter), meter.generator.getstate(), owner.table, owner.counts])


def test_an_object_of_plain_attributes_goes_back_and_one_that_holds_more_stays():
    owner = SimpleNamespace(meter=Meter(), live=Live(), data=TensorDataset(torch.zeros(1)))
    kept, found = PlainAttributes(owner), owner.meter
    owner.meter.change()
    owner.live.change()
    owner.data.tensors[0].add_(1)
    kept.put_back()
    assert owner.meter is found
    assert (owner.meter.total, owner.meter.values) == (0.0, {"all": [0.5]})
    assert owner.meter.generator.random() == random.Random(3).random()
    assert (owner.live.total, "last" in owner.live.values) == (1.0, True)
    assert owner.data.tensors[0].item() == 1


def test_parameters_in_a_list_are_the_snapshots():
    owner = SimpleNamespace(weights=[torch.nn.Parameter(torch.zeros(2))])
    kept = PlainAttributes(owner)
    with torch.no_grad():
        owner.weights[0] += 1
    kept.put_back()
    assert owner.weights[0].tolist() == [1.0, 1.0]


def test_what_is_too_large_stays_as_it_is():
    owner = SimpleNamespace(small=torch.zeros(2), large=[torch.zeros(4), np.zeros(4)])
    kept = PlainAttributes(owner, below=16)
    for numbers in (owner.small, *owner.large):
        numbers += 1
    kept.put_back()
    assert [numbers.max() for numbers in (owner.small, *owner.large)] == [0, 1, 1]


def test_a_chain_of_objects_may_be_long():
    chain = owner = SimpleNamespace(next=None, count=0)
    for _ in range(3000):
        chain.next = SimpleNamespace(next=None, count=0)
        chain = chain.next
    kept = PlainAttributes(owner)
    chain.count = 1
    kept.put_back()
    assert chain.count == 0
    while owner is not None:  # a long chain cannot be let go at once
        owner.next, owner = None, owner.next
