# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_stable.functional.tensor_norms import local
from lightning_stable.transforms.shards import all_finite, scale_, sum_over_rows, wide


@pytest.mark.parametrize("shape", [(), (1,), (5,), (0,), (3, 4), (0, 4), (3, 2, 2)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_scaling_is_one_product_in_float32_at_least(shape, dtype):
    tensor = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(dtype)
    factor = torch.tensor(0.3, dtype=torch.float64)
    expected = (tensor.double() * factor.to(wide(tensor)).double()).to(wide(tensor)).to(dtype)
    scale_(tensor, factor)
    torch.testing.assert_close(tensor, expected, rtol=0, atol=0)


def test_a_bfloat16_tensor_is_not_scaled_by_a_bfloat16_factor():
    """0.998 would be 0.996, and 100 of that 99.5."""
    tensor = torch.full((1,), 100.0, dtype=torch.bfloat16)
    scale_(tensor, torch.tensor(0.998, dtype=torch.float64))
    assert tensor.item() == 100.0


def test_a_factor_of_one_leaves_every_bit():
    tensor = torch.tensor([-0.0, torch.nan, torch.inf, 1e-45, 3.0])
    before = tensor.view(torch.int32).clone()
    scale_(tensor, torch.tensor(1.0, dtype=torch.float64))
    assert torch.equal(tensor.view(torch.int32), before)


def test_a_factor_per_row_scales_rows_whatever_the_memory_looks_like():
    tensor = torch.arange(12.0).reshape(4, 3).t()
    expected = tensor.clone() * torch.tensor([[1.0], [2.0], [3.0]])
    scale_(tensor, torch.tensor([1.0, 2.0, 3.0]))
    assert torch.equal(tensor, expected)
    assert tensor.stride() == (1, 3)


def test_a_whole_tensor_is_its_own_part_and_its_sums_are_complete():
    tensor, sums = torch.ones(2, 3), torch.tensor([3.0, 3.0])
    assert local(tensor) is tensor
    assert torch.equal(sum_over_rows(sums.clone(), tensor), sums)


def test_finiteness_is_said_of_each_tensor():
    values = [torch.ones(2), torch.zeros(0), torch.tensor(torch.inf), torch.tensor([0.0, torch.nan])]
    assert all_finite(values, [torch.zeros(1)] * 4).tolist() == [True, True, False, False]
    assert all_finite([], []).tolist() == []
