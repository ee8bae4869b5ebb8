# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.optim import StableSPAM
from lightning_stable.optim.moment_units import MomentUnits, can_keep_units, read_units
from tests.optim.test_stable_spam import SETTINGS, gradients, parameters, run

BETAS = 0.9, 0.999


@pytest.mark.parametrize("spread", [0.5, 3.0, 20.0], ids=["steady", "wild", "from nothing to everything"])
def test_moments_in_units_are_the_moments_of_what_was_multiplied(spread):
    generator = torch.Generator().manual_seed(0)
    m, v, kept_m, kept_v = (torch.zeros(5, dtype=torch.float64) for _ in range(4))
    units, changes = MomentUnits(), 0
    for _ in range(200):
        gradient = torch.randn(5, generator=generator, dtype=torch.float64)
        factor = math.exp(spread * torch.randn((), generator=generator).item())
        m = BETAS[0] * m + (1 - BETAS[0]) * factor * gradient
        v = BETAS[1] * v + (1 - BETAS[1]) * (factor * gradient) ** 2
        change, units, (beta1, beta2) = units.after(factor, BETAS)
        if change is not None:
            changes += 1
            change.multiply(kept_m, kept_v)
        kept_m = beta1 * kept_m + (1 - beta1) * gradient
        kept_v = beta2 * kept_v + (1 - beta2) * gradient**2
        torch.testing.assert_close(units.exp_avg * kept_m, m, rtol=1e-10, atol=0)
        torch.testing.assert_close(units.exp_avg_sq * kept_v, v, rtol=1e-10, atol=0)
    assert (changes < 2) == (spread == 0.5)


@pytest.mark.parametrize("factor", [1e-7, 0.1, 10.0, 1e7])
def test_rates_stay_away_from_zero_and_one(factor):
    """1 - beta of a beta that is 1 but for 1e-16 is wrong in its first digit."""
    change, units, betas = MomentUnits(1.0, 1.0).after(factor, BETAS)
    assert betas == BETAS
    assert (units.exp_avg, units.exp_avg_sq) == pytest.approx((factor, factor**2))
    assert (change.exp_avg, change.exp_avg_sq) == pytest.approx((1 / factor, 1 / factor**2))


def test_moments_keep_their_units_as_long_as_gradients_count_about_as_much():
    change, units, betas = MomentUnits(1.0, 1.0).after(5.0, BETAS)
    assert change is None
    assert (units.exp_avg, units.exp_avg_sq) == pytest.approx((1.4, 1.024))
    assert betas == pytest.approx((0.9 / 1.4, 0.999 / 1.024))


@pytest.mark.parametrize(
    ("factor", "largest"), [(-1.0, 1.0), (1.0, 0.0), (1.0, 1e-10), (1.0, 1e10), (1.0, math.inf), (1.0, math.nan)]
)
def test_what_cannot_be_squared_or_counts_the_other_way_is_multiplied(factor, largest):
    assert not can_keep_units(factor, largest)


def far_along(small_at, monkeypatch, **more):
    """Weights and state after 60 steps; `small_at(step)` decides which of the ways of moving tensors is taken."""
    start = parameters()
    optimizer = StableSPAM(start, **SETTINGS, **more)
    for step in range(1, 61):
        monkeypatch.setattr("lightning_stable.optim.chunks.SMALL", 2**14 if small_at(step) else 0)
        run(optimizer, [step])
    return optimizer, [parameter.detach() for parameter in start]


@pytest.mark.parametrize("small_at", [lambda step: step % 2, lambda step: step > 33, lambda step: step < 33])
def test_a_tensor_can_be_moved_in_another_way_from_one_step_to_the_next(small_at, monkeypatch):
    _, expected = far_along(lambda step: True, monkeypatch)
    _, actual = far_along(small_at, monkeypatch)
    torch.testing.assert_close(actual, expected, rtol=0, atol=1e-12)


def test_the_state_says_what_the_moments_are(monkeypatch):
    plain, _ = far_along(lambda step: True, monkeypatch)
    in_units, _ = far_along(lambda step: False, monkeypatch)
    for one, other in zip(plain.state.values(), in_units.state.values(), strict=True):
        [units] = read_units([other])
        torch.testing.assert_close(other["exp_avg"] * units.exp_avg, one["exp_avg"], rtol=1e-9, atol=1e-14)
        torch.testing.assert_close(other["exp_avg_sq"] * units.exp_avg_sq, one["exp_avg_sq"], rtol=1e-9, atol=1e-18)
        assert read_units([one]) == [MomentUnits()]


def test_ascent_is_descent_along_the_negative_gradient(monkeypatch):
    monkeypatch.setattr("lightning_stable.optim.chunks.SMALL", 0)
    up, down = parameters(), parameters()
    climber, faller = StableSPAM(up, **SETTINGS, maximize=True), StableSPAM(down, **SETTINGS)
    for step in range(1, 30):
        for one, other, gradient in zip(up, down, gradients(step), strict=True):
            one.grad, other.grad = gradient, None if gradient is None else -gradient
        climber.step()
        faller.step()
    torch.testing.assert_close([each.detach() for each in up], [each.detach() for each in down], rtol=0, atol=1e-12)


@pytest.mark.parametrize("size", [1e-14, 1e-8, 1.0, 1e8, 1e14])
def test_single_precision_is_enough_for_gradients_of_any_size(size, monkeypatch):
    monkeypatch.setattr("lightning_stable.optim.chunks.SMALL", 0)
    generator, ends = torch.Generator().manual_seed(0), []
    given = [torch.randn(50, generator=generator, dtype=torch.float64) for _ in range(100)]
    for dtype in (torch.float32, torch.float64):
        parameter = torch.nn.Parameter(torch.zeros(50, dtype=dtype))
        optimizer = StableSPAM([parameter], lr=1e-2, eps=1e-30)
        for step, gradient in enumerate(given):
            jump = 1e6 if step == 60 else 1.0
            parameter.grad = (gradient * size * jump).to(dtype)
            optimizer.step()
        ends.append(parameter.detach().double())
    torch.testing.assert_close(*ends, rtol=0, atol=1e-5)
