# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_stable.functional import ada_clip, ada_clip_threshold


@pytest.mark.parametrize("as_tensor", [True, False])
def test_entries_above_the_threshold_are_scaled_and_keep_their_order(as_tensor):
    gradient = torch.tensor([3.0, -4.0, 5.0, -8.0, 0.0], dtype=torch.float64)
    bounds = [torch.tensor(value, dtype=torch.float64) if as_tensor else value for value in (4.0, 8.0)]
    assert ada_clip(gradient, *bounds).tolist() == [3.0, -4.0, 2.5, -4.0, 0.0]
    assert gradient.tolist() == [3.0, -4.0, 5.0, -8.0, 0.0]


def test_numbers_and_tensors_give_the_same_bits():
    gradient = torch.randn(1000, generator=torch.Generator().manual_seed(0)) * 1e4
    largest = gradient.abs().max()
    assert torch.equal(ada_clip(gradient, 0.5, largest.item()), ada_clip(gradient, torch.tensor(0.5), largest))


def test_the_threshold_is_the_bias_corrected_mean_of_the_largest_entries():
    mean, seen = torch.zeros((), dtype=torch.float64), []
    for step, largest in enumerate([4.0, 2.0, 100.0, 1.0], 1):
        seen.append(largest)
        mean, threshold = ada_clip_threshold(
            torch.tensor(largest, dtype=torch.float64), mean, torch.tensor(float(step), dtype=torch.float64), 0.9
        )
        weights = [0.9 ** (step - i) for i in range(1, step + 1)]
        expected = sum(w * x for w, x in zip(weights, seen, strict=True)) / sum(weights)
        assert threshold.item() == pytest.approx(expected, rel=1e-14)


def test_a_constant_gradient_is_never_clipped():
    mean = torch.zeros((), dtype=torch.float64)
    for step in torch.arange(1.0, 200, dtype=torch.float64):
        largest = torch.tensor(3.0, dtype=torch.float64)
        mean, threshold = ada_clip_threshold(largest, mean, step, 0.999)
        assert threshold.item() == pytest.approx(3.0, rel=1e-12)


def test_what_it_returns_can_be_put_where_it_is_wanted():
    gradient, out = torch.tensor([3.0, -8.0]), torch.zeros(2)
    assert ada_clip(gradient, 4.0, 8.0, out=out) is out
    assert out.tolist() == [3.0, -4.0]
    assert torch.equal(ada_clip(gradient, torch.tensor(4.0), torch.tensor(8.0), out=torch.ones(2)), out)
