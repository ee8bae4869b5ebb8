# SPDX-License-Identifier: Apache-2.0
from collections import UserDict, namedtuple
from dataclasses import dataclass
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_stable.callbacks.batches.batch_counts import count_samples, count_tokens

IDS = torch.zeros(3, 5, dtype=torch.int64)
PIXELS = torch.zeros(4, 1, 8, 8)
Pair = namedtuple("Pair", "inputs targets")


@dataclass
class Batch:
    name: str
    inputs: torch.Tensor


@pytest.mark.parametrize(
    "batch",
    [
        PIXELS,
        [PIXELS, torch.zeros(4)],
        (torch.tensor(1.0), [], {"x": [PIXELS]}),
        {"id": 3, "text": "abc", "x": PIXELS},
        Pair(PIXELS, torch.zeros(4)),
        Batch("a", PIXELS),
        SimpleNamespace(x=PIXELS),
        UserDict(x=PIXELS),
    ],
    ids=lambda batch: type(batch).__name__,
)
def test_samples_are_the_first_axis_of_the_first_tensor_that_has_one(batch):
    assert count_samples(batch) == 4


@pytest.mark.parametrize("batch", [None, 3, "text", {}, [], torch.tensor(1.0), ["a", b"b"]], ids=repr)
def test_where_no_tensor_has_axes_there_is_no_count(batch):
    assert count_samples(batch) is None
    assert count_tokens(batch) is None


class Task(Enum):
    TEXT = 1
    IMAGES = 2


@pytest.mark.parametrize(
    "other", [Task.TEXT, Task, Batch, datetime(2024, 1, 1), Path(), torch.float32, slice(1)], ids=str
)
def test_what_holds_no_tensor_is_passed_over(other):
    assert count_samples({"other": other, "pixels": PIXELS}) == 4
    assert count_tokens([other, IDS]) == 15


def test_an_object_that_holds_itself_is_looked_at_once():
    node = SimpleNamespace(parent=None, pixels=PIXELS)
    node.parent = SimpleNamespace(children=[node])
    assert count_samples(node) == 4
    chain = []
    chain.append(chain)
    assert count_samples(chain) is None


def test_an_empty_batch_has_no_samples_and_no_tokens():
    assert count_samples(torch.zeros(0, 5)) == 0
    assert count_tokens(torch.zeros(0, 5, dtype=torch.int32)) == 0


@pytest.mark.parametrize(
    ("batch", "expected"),
    [
        (IDS, 15),
        ((IDS, IDS), 15),
        ({"x": IDS.to(torch.int16)}, 15),
        (torch.zeros(2, 7, 16), 14),  # embedded already
        (torch.zeros(2, 7), None),  # features of two samples, or two sequences of numbers?
        (torch.ones(2, 7, dtype=torch.bool), None),
        (PIXELS, None),
        (torch.zeros(5, dtype=torch.int64), None),
    ],
)
def test_tokens_are_samples_times_length_where_the_shape_says_so(batch, expected):
    assert count_tokens(batch) == expected


def test_a_key_names_what_is_counted():
    batch = {"mask": torch.zeros(3, 9), "text": {"input_ids": IDS}, "pair": Pair(PIXELS, IDS)}
    assert count_tokens(batch, "text.input_ids") == count_tokens(batch, "text") == 15
    assert count_tokens(batch, "pair.targets") == count_tokens(batch, "pair.1") == 15
    assert count_samples(batch, "pair") == 4
    assert count_tokens(batch, "mask") is None  # no integers
    assert count_tokens({"ids": torch.zeros(6, dtype=torch.int64)}, "ids") == 6  # packed into one axis


def test_a_key_that_is_not_there_says_what_is():
    with pytest.raises(KeyError, match="no 'ids' in the batch, but 'mask', 'labels'"):
        count_tokens({"mask": PIXELS, "labels": IDS}, "ids")
    with pytest.raises(KeyError, match="no 'ids' in the batch, but only Tensor"):
        count_samples(IDS, "ids")
