# SPDX-License-Identifier: Apache-2.0
import dataclasses
from collections import OrderedDict, namedtuple

import pytest
import torch

from lightning_stable.functional.batch_contents import replace_tensors

Pair = namedtuple("Pair", ["x", "y"])


@dataclasses.dataclass(frozen=True)
class Frozen:
    x: torch.Tensor
    name: str = "n"


class Graph:
    def __init__(self):
        self.x, self.nodes = torch.ones(2), 2


def double(tensor):
    return 2 * tensor


CASES = {
    "tensor": (torch.ones(2), None, lambda batch: batch),
    "dictionary": ({"x": torch.ones(2), "n": 1}, None, lambda batch: batch["x"]),
    "ordered": (OrderedDict(x=torch.ones(2)), "x", lambda batch: batch["x"]),
    "key that is a number": ({3: torch.ones(2)}, "3", lambda batch: batch[3]),
    "list": ([torch.ones(2), 1], "0", lambda batch: batch[0]),
    "tuple": ((1, torch.ones(2)), "1", lambda batch: batch[1]),
    "named tuple": (Pair(torch.ones(2), 1), "x", lambda batch: batch.x),
    "named tuple by index": (Pair(torch.ones(2), 1), "0", lambda batch: batch.x),
    "frozen dataclass": (Frozen(torch.ones(2)), "x", lambda batch: batch.x),
    "object": (Graph(), "x", lambda batch: batch.x),
    "nested": ({"views": [{"x": (torch.ones(2),)}]}, "views.0.x", lambda batch: batch["views"][0]["x"][0]),
}


@pytest.mark.parametrize("case", CASES)
def test_tensors_are_replaced_in_a_copy_of_the_same_kind(case):
    batch, place, get = CASES[case]
    new = replace_tensors(batch, double, place)
    assert type(new) is type(batch)
    assert torch.equal(get(new), torch.full((2,), 2.0))
    assert torch.equal(get(batch), torch.ones(2))


def test_one_place_alone_is_replaced():
    batch = {"x": torch.ones(2), "more": [torch.ones(2), torch.ones(2)]}
    new = replace_tensors(batch, double, "more.1")
    assert [float(tensor.sum()) for tensor in (new["x"], *new["more"])] == [2.0, 2.0, 4.0]


@pytest.mark.parametrize(
    ("batch", "place", "message"),
    [
        ({"x": [torch.ones(1)]}, "x.1", r"got 'x.1'; where it looked for '1' there is '0'"),
        ({"x": torch.ones(1)}, "y", r"where it looked for 'y' there is 'x'"),
        ({"x": torch.ones(1)}, "x.0", r"where it looked for '0' there is only Tensor"),
    ],
)
def test_a_place_that_is_not_there_is_named_together_with_what_is(batch, place, message):
    with pytest.raises(ValueError, match=message):
        replace_tensors(batch, double, place)
