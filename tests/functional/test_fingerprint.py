# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest
import torch

from lightning_stable.functional.fingerprint import fingerprint


class Graph:
    def __init__(self):
        self.x, self.nodes = torch.ones(2), 2


def batch(**changes):
    contents = {"x": torch.arange(4.0), "pair": (torch.tensor(True), 3), "names": ["a"], "array": np.arange(3)}
    return {**contents, **changes}


def test_the_same_contents_have_the_same_fingerprint():
    assert fingerprint(batch()) == fingerprint(batch())
    nan = torch.tensor([float("nan"), 1.0])
    assert fingerprint(nan) == fingerprint(nan.clone())
    assert fingerprint(Graph()) == fingerprint(Graph())
    assert fingerprint(torch.eye(3).to_sparse()) == fingerprint(torch.eye(3).to_sparse())
    assert fingerprint(torch.arange(6).view(2, 3).T) == fingerprint(torch.arange(6).view(2, 3).T.contiguous())


@pytest.mark.parametrize(
    "changes",
    [
        {"x": torch.arange(4.0).nextafter(torch.tensor(9.0))},
        {"x": torch.arange(4.0, dtype=torch.float64)},
        {"x": torch.arange(4.0).view(2, 2)},
        {"pair": (torch.tensor(False), 3)},
        {"pair": (torch.tensor(True), 4)},
        {"pair": [torch.tensor(True), 3]},
        {"names": ["b"]},
        {"array": np.arange(1, 4)},
        {"array": np.arange(3).reshape(3, 1)},
        {"array": np.arange(3).view(np.uint64)},
        {"names": ["a", []]},
        {"names": [["a"]]},
        {"more": None},
    ],
    ids=str,
)
def test_other_contents_have_another_fingerprint(changes):
    assert fingerprint(batch(**changes)) != fingerprint(batch())


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.complex64, torch.uint8, torch.bool])
def test_every_type_of_number_has_a_fingerprint(dtype):
    assert fingerprint(torch.ones(3).to(dtype)) != fingerprint(torch.zeros(3).to(dtype))


def test_where_a_container_ends_counts_too():
    assert fingerprint([[1], 2]) != fingerprint([[1, 2]])


def test_it_is_a_sha256_in_hexadecimal():
    assert len(fingerprint(batch())) == 64
    assert int(fingerprint(batch()), 16) > 0
