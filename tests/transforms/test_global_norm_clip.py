# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.transforms.global_norm_clip import GlobalNormClip

SHAPES = [(4, 3), (5,), (), (0,), (2, 2, 2)]


def parameters(scale=1.0, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.nn.Parameter(torch.zeros(shape, dtype=dtype)) for shape in SHAPES]
    for parameter in made:
        parameter.grad = (scale * torch.randn(parameter.shape, generator=generator)).to(dtype)
    return made


def reference_clip(gradients, max_norm):
    norm = math.sqrt(sum(value**2 for gradient in gradients for value in gradient.flatten().tolist()))
    return [gradient * min(1.0, max_norm / norm) for gradient in gradients], norm


@pytest.mark.parametrize("max_norm", [0.1, 1.0, 5.0, 100.0, math.inf])
def test_it_follows_its_equation(max_norm):
    for seed in range(60):
        ours, transform = parameters(seed=seed), GlobalNormClip(max_norm)
        expected, norm = reference_clip([parameter.grad for parameter in ours], max_norm)
        transform.transform(ours)
        for parameter, gradient in zip(ours, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)
        assert transform.clip_rate.item() == float(norm > max_norm)


def test_it_does_what_torch_does_where_torch_is_right():
    ours, theirs = parameters(scale=10.0), parameters(scale=10.0)
    GlobalNormClip(1.0).transform(ours)
    torch.nn.utils.clip_grad_norm_(theirs, 1.0)
    for one, other in zip(ours, theirs, strict=True):
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-6, atol=1e-12)


def test_a_spike_of_any_size_comes_out_at_max_norm_and_in_its_direction():
    for scale in (10.0, 1e4, 1e8):
        ours = parameters(scale, torch.float32)
        before = torch.cat([parameter.grad.flatten().double() for parameter in ours])
        GlobalNormClip(2.0).transform(ours)
        after = torch.cat([parameter.grad.flatten().double() for parameter in ours])
        assert after.norm().item() == pytest.approx(2.0, rel=1e-6)
        assert torch.cosine_similarity(before, after, dim=0).item() == pytest.approx(1.0, rel=1e-12)


def test_the_norm_of_bfloat16_gradients_is_not_a_bfloat16():
    """A norm kept in bfloat16 is off by up to 0.4%."""
    parameter = torch.nn.Parameter(torch.zeros(1001, dtype=torch.bfloat16))
    parameter.grad = torch.full((1001,), 1.0, dtype=torch.bfloat16)
    GlobalNormClip(math.sqrt(1001) / 2).transform([parameter])
    assert torch.equal(parameter.grad, torch.full_like(parameter, 0.5))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_where_the_norm_is_not_finite_nothing_is_changed(bad):
    ours = parameters(scale=100.0)
    ours[1].grad[2] = bad
    before = [parameter.grad.clone() for parameter in ours]
    transform = GlobalNormClip(1.0)
    transform.transform(ours)
    for parameter, gradient in zip(ours, before, strict=True):
        torch.testing.assert_close(parameter.grad, gradient, rtol=0, atol=0, equal_nan=True)
    assert transform.clip_rate.item() == 0.0


def test_zero_gradients_and_parameters_without_one_are_no_trouble():
    ours = parameters(scale=0.0)
    ours[0].grad = None
    GlobalNormClip().transform(ours)
    assert ours[0].grad is None
    assert all(not parameter.grad.any() for parameter in ours[1:])


def test_a_gradient_below_the_limit_keeps_every_bit():
    ours = parameters(scale=1e-3, dtype=torch.float32)
    before = [parameter.grad.clone() for parameter in ours]
    GlobalNormClip(1.0).transform(ours)
    assert all(torch.equal(parameter.grad, gradient) for parameter, gradient in zip(ours, before, strict=True))


@pytest.mark.parametrize("max_norm", [0.0, -1.0, math.nan])
def test_a_bad_limit_is_refused(max_norm):
    with pytest.raises(ValueError, match=r"`GlobalNormClip\(max_norm=\.\.\.\)` must be larger than 0, got"):
        GlobalNormClip(max_norm)
