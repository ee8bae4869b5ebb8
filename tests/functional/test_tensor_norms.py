# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.functional.tensor_norms import copies_of, reduce_over_shards, tensor_maxima, tensor_norms

TENSORS = [
    torch.tensor([3.0, 4.0]),
    torch.zeros(0),
    torch.tensor(-2.0, dtype=torch.float64),
    torch.full((1000,), 1.0, dtype=torch.bfloat16),
    torch.arange(6.0).reshape(2, 3).t(),
]


def test_norms_are_those_of_each_tensor():
    expected = [5.0, 0.0, 2.0, math.sqrt(1000), math.sqrt(55)]
    assert tensor_norms(TENSORS).tolist() == pytest.approx(expected, rel=1e-6)


def test_maxima_are_those_of_each_tensor():
    assert tensor_maxima(TENSORS).tolist() == [4.0, 0.0, 2.0, 1.0, 5.0]


@pytest.mark.parametrize("function", [tensor_norms, tensor_maxima])
def test_nan_and_infinity_show(function):
    found = function([torch.tensor([1.0, torch.nan]), torch.tensor([1.0, -torch.inf]), torch.ones(1)])
    assert found[0].isnan()
    assert found[1] == torch.inf
    assert found[2] == 1.0


def test_nothing_has_no_norms():
    assert tensor_norms([]).shape == tensor_maxima([]).shape == (0,)


def test_tensors_in_one_piece_need_no_other_process():
    values = torch.tensor([1.0, 2.0])
    assert torch.equal(reduce_over_shards(values, [torch.ones(1), torch.ones(1)], operation=None), values)


def test_a_plain_tensor_is_on_every_rank():
    assert copies_of(torch.ones(3), world_size=4) == 4.0
