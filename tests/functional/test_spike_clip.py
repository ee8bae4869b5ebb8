# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.functional import spike_clip


def test_it_follows_its_equation():
    generator = torch.Generator().manual_seed(0)
    gradient = torch.randn(200, generator=generator, dtype=torch.float64) * 10
    second = torch.rand(200, generator=generator, dtype=torch.float64)
    second[::7] = 0
    expected = [
        math.copysign(math.sqrt(5 * v), g) if v > 0 and g * g > 5 * v else g
        for g, v in zip(gradient.tolist(), second.tolist(), strict=True)
    ]
    clipped = spike_clip(gradient, second, threshold=5.0)
    torch.testing.assert_close(clipped, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-14)


def test_what_is_below_its_limit_is_handed_back_as_it_is():
    gradient = torch.tensor([1.0, -2.0, 0.0])
    assert spike_clip(gradient, torch.tensor([1.0, 1.0, 0.0]), threshold=5.0) is gradient


def test_the_gradient_is_not_written_to():
    gradient, second = torch.tensor([100.0]), torch.tensor([1.0])
    assert spike_clip(gradient, second, threshold=4.0).item() == 2.0
    assert (gradient.item(), second.item()) == (100.0, 1.0)


def test_infinity_is_clipped_and_nan_stays():
    clipped = spike_clip(torch.tensor([torch.inf, -torch.inf, torch.nan, torch.inf]), torch.tensor([1.0, 1, 1, 0]), 4.0)
    assert clipped[:2].tolist() == [2.0, -2.0]
    assert clipped[2].isnan()
    assert clipped[3] == torch.inf


def test_a_second_moment_too_small_for_a_limit_clips_nothing():
    assert spike_clip(torch.tensor([1.0]), torch.tensor([1e-45]), threshold=0.1).item() == 1.0


@pytest.mark.parametrize("shape", [(0,), (), (2, 3)])
def test_any_shape_will_do(shape):
    assert spike_clip(torch.ones(shape), torch.ones(shape), threshold=0.25).tolist() == torch.full(shape, 0.5).tolist()
