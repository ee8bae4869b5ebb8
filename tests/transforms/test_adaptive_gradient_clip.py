# SPDX-License-Identifier: Apache-2.0
import copy
import math
import pickle

import pytest
import torch

from lightning_stable.transforms.adaptive_gradient_clip import AdaptiveGradientClip

SHAPES = [(4, 3), (5,), (), (3, 2, 3), (2, 3, 2, 2), (1, 7), (0, 3), (3, 0)]


def parameters(scale=0.02, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in SHAPES]
    made[0].data[1] = 0.0
    for parameter in made:
        size = scale * torch.randn(parameter.shape[:1], generator=generator).exp()
        size = size.reshape(-1, *[1] * (parameter.ndim - 1)) if parameter.ndim else size
        parameter.grad = (size * torch.randn(parameter.shape, generator=generator)).to(dtype)
    return made


def reference_clip_unit(gradient, weight, clipping, eps):
    """One unit, as two lists of numbers."""
    gradient_norm = math.sqrt(sum(value**2 for value in gradient))
    limit = clipping * max(math.sqrt(sum(value**2 for value in weight)), eps)
    if gradient_norm > limit:
        return [value * limit / gradient_norm for value in gradient], True
    return gradient, False


def reference_clip(parameter, clipping, eps):
    if parameter.ndim < 2:
        units = [(parameter.grad.flatten().tolist(), parameter.flatten().tolist())]
    else:
        units = [(g.flatten().tolist(), w.flatten().tolist()) for g, w in zip(parameter.grad, parameter, strict=True)]
    clipped = [reference_clip_unit(gradient, weight, clipping, eps) for gradient, weight in units]
    values = torch.tensor([value for unit, _ in clipped for value in unit], dtype=torch.float64)
    return values.reshape(parameter.shape), [was_clipped for _, was_clipped in clipped]


@pytest.mark.parametrize(("clipping", "eps"), [(0.01, 1e-3), (0.16, 1e-3), (0.02, 2.0)])
def test_it_follows_its_equation(clipping, eps):
    rates = set()
    for seed in range(20):
        ours, transform = parameters(seed=seed), AdaptiveGradientClip(clipping, eps)
        expected = [reference_clip(parameter, clipping, eps) for parameter in ours]
        transform.transform(ours)
        for parameter, (gradient, _) in zip(ours, expected, strict=True):
            torch.testing.assert_close(parameter.grad, gradient, rtol=1e-12, atol=1e-12)
        units = [was_clipped for _, unit in expected for was_clipped in unit]
        assert transform.clip_rate.item() == pytest.approx(sum(units) / len(units), abs=1e-15)
        rates.add(sum(units) / len(units))
    assert max(rates) > 0
    assert len(rates) > 2


def test_no_unit_exceeds_its_share_after_a_spike_and_units_below_keep_every_bit():
    weight = torch.nn.Parameter(torch.randn(64, 3, 3, 3, generator=torch.Generator().manual_seed(0)))
    weight.grad = 1e-3 * weight.detach().flip(0)
    weight.grad[::4] *= 1e6
    before = weight.grad.clone()
    AdaptiveGradientClip(0.01).transform([weight])
    ratio = weight.grad.flatten(1).norm(dim=1) / weight.detach().flatten(1).norm(dim=1)
    assert ratio.max() <= 0.01 * (1 + 1e-5)
    assert ratio[::4].min() >= 0.01 * (1 - 1e-5)
    small = torch.arange(64) % 4 != 0
    assert torch.equal(weight.grad[small], before[small])


def test_units_of_a_one_dimensional_convolution_are_its_filters():
    """Reducing over the second axis only would give each of the 3 positions a limit of its own."""
    weight = torch.nn.Parameter(torch.ones(1, 2, 3))
    weight.grad = torch.zeros(1, 2, 3)
    weight.grad[0, 0, 0] = 1.0
    AdaptiveGradientClip(0.1).transform([weight])
    assert weight.grad[0, 0, 0].item() == pytest.approx(0.1 * math.sqrt(6))


def test_weights_that_start_at_zero_can_move():
    weight = torch.nn.Parameter(torch.zeros(2, 3))
    weight.grad = torch.ones(2, 3)
    AdaptiveGradientClip(0.01, eps=1e-3).transform([weight])
    torch.testing.assert_close(weight.grad.norm(dim=1), torch.full((2,), 1e-5))


def test_excluded_parameters_are_not_clipped_and_do_not_count():
    body, head = (torch.nn.Parameter(torch.ones(2, 2)) for _ in range(2))
    transform = AdaptiveGradientClip()
    transform.exclude_parameters(iter([head]))
    body.grad, head.grad = torch.ones(2, 2), torch.ones(2, 2)
    transform.transform([body, head])
    assert torch.equal(head.grad, torch.ones(2, 2))
    assert body.grad.norm() < 0.1
    assert transform.clip_rate.item() == 1.0
    transform.transform([head])
    assert transform.clip_rate.item() == 0.0
    transform.exclude_parameters([])
    transform.transform([head])
    assert head.grad.norm() < 0.1


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda things: pickle.loads(pickle.dumps(things))])
def test_exclusion_survives_a_copy_made_together_with_the_model(twin):
    model, transform = torch.nn.Linear(2, 2), AdaptiveGradientClip()
    transform.exclude_parameters([model.weight])
    model, transform = twin((model, transform))
    for parameter in model.parameters():
        parameter.grad = torch.ones_like(parameter)
    transform.transform(model.parameters())
    assert torch.equal(model.weight.grad, torch.ones(2, 2))
    assert not torch.equal(model.bias.grad, torch.ones(2))


def test_exclude_names_roles_or_patterns_of_names():
    transform = AdaptiveGradientClip(exclude=("head", "blocks.*.out.*"))
    assert transform.excludes("lm.weight", "head")
    assert transform.excludes("blocks.3.out.weight", "matrix")
    assert not transform.excludes("blocks.3.in.weight", "matrix")
    assert not AdaptiveGradientClip(exclude=()).excludes("lm.weight", "head")


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
@pytest.mark.parametrize("position", [0, 1])
def test_a_tensor_that_is_not_finite_is_left_alone_and_the_others_are_clipped(bad, position):
    ours = parameters(scale=10.0)
    ours[position].grad[1] = bad
    before = ours[position].grad.clone()
    AdaptiveGradientClip().transform(ours)
    torch.testing.assert_close(ours[position].grad, before, rtol=0, atol=0, equal_nan=True)
    assert ours[3].grad.norm() < 0.1


def test_norms_of_float16_weights_do_not_overflow():
    weight = torch.nn.Parameter(torch.full((1, 4), 300.0, dtype=torch.float16))
    weight.grad = torch.full((1, 4), 600.0, dtype=torch.float16)
    AdaptiveGradientClip(0.01).transform([weight])
    assert weight.grad.tolist() == [[3.0] * 4]


@pytest.mark.parametrize("name", ["clipping", "eps"])
@pytest.mark.parametrize("value", [0.0, -1.0, math.nan])
def test_bad_numbers_are_refused(name, value):
    with pytest.raises(ValueError, match=rf"`AdaptiveGradientClip\({name}=\.\.\.\)` must be larger than 0, got"):
        AdaptiveGradientClip(**{name: value})


def test_one_string_is_not_a_tuple_of_strings():
    with pytest.raises(TypeError, match=r"must be a tuple of strings, got 'head'\. Write `exclude=\('head',\)`"):
        AdaptiveGradientClip(exclude="head")
