# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.optim.adam_atan2 import AdamAtan2

STEPS = 64


def gradients(seed=0, size=7):
    """One gradient a step, of very different sizes; none in every ninth."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(STEPS, size, generator=generator, dtype=torch.float64).exp_().sub_(1.0)
    return [None if step % 9 == 4 else gradient for step, gradient in enumerate(drawn)]


def reference_adam_atan2(start, gradients, lr, beta1, beta2, a, b, weight_decay):
    w, m, v, t = list(start), [0.0] * len(start), [0.0] * len(start), 0
    for gradient in gradients:
        if gradient is None:
            continue
        t += 1
        for i, g in enumerate(gradient.tolist()):
            w[i] = w[i] - lr * weight_decay * w[i]
            m[i] = beta1 * m[i] + (1 - beta1) * g
            v[i] = beta2 * v[i] + (1 - beta2) * g**2
            m_hat = m[i] / (1 - beta1**t)
            v_hat = v[i] / (1 - beta2**t)
            w[i] = w[i] - lr * a * math.atan2(m_hat, b * math.sqrt(v_hat))
    return w


def run(optimizer, gradients):
    """Step through the gradients and return the parameter after each."""
    (parameter,) = optimizer.param_groups[0]["params"]
    path = []
    for gradient in gradients:
        parameter.grad = None if gradient is None else gradient.clone().to(parameter.dtype)
        optimizer.step()
        path.append(parameter.detach().clone())
    return torch.stack(path)


def parameter(size=7, dtype=torch.float64):
    return torch.nn.Parameter(torch.linspace(-1.0, 2.0, size, dtype=dtype))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "given",
    [{}, {"betas": (0.8, 0.95)}, {"a": 0.7, "b": 2.5}, {"betas": (0.0, 0.0)}],
    ids=["defaults", "betas", "a_and_b", "no_memory"],
)
def test_it_follows_its_equations(given, weight_decay):
    arguments = {"betas": (0.9, 0.99), "a": 1.27, "b": 1.0, **given}
    path = run(AdamAtan2([parameter()], lr=0.05, weight_decay=weight_decay, **given), gradients())
    expected = reference_adam_atan2(
        parameter().tolist(),
        gradients(),
        0.05,
        *arguments["betas"],
        arguments["a"],
        arguments["b"],
        weight_decay,
    )
    torch.testing.assert_close(path[-1], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_gradients_of_any_scale_give_the_same_updates_where_adam_stands_still():
    small = [None if gradient is None else gradient * 1e-20 for gradient in gradients()]
    path = run(AdamAtan2([parameter()], lr=0.05), gradients())
    scaled = run(AdamAtan2([parameter()], lr=0.05), small)
    torch.testing.assert_close(scaled, path, rtol=1e-12, atol=1e-12)
    adam = run(torch.optim.Adam([parameter()], lr=0.05, betas=(0.9, 0.99), eps=1e-8), small)
    assert (path[-1] - parameter()).abs().min() > 0.05
    assert (adam - parameter()).abs().max() < 1e-9


@pytest.mark.parametrize(("scale", "error"), [(2.0**-40, 0.0), (2.0**40, 0.0), (1e-20, 0.02)])
def test_the_scale_does_not_matter_in_float32_either(scale, error):
    scaled = [None if gradient is None else gradient.float() * scale for gradient in gradients()]
    path = run(AdamAtan2([parameter(dtype=torch.float32)], lr=0.05), gradients())
    moved = run(AdamAtan2([parameter(dtype=torch.float32)], lr=0.05), scaled)
    torch.testing.assert_close(moved, path, rtol=0.0, atol=error)


def test_no_update_is_larger_than_lr_a_half_pi():
    path = run(AdamAtan2([parameter()], lr=0.05, b=1e-3), gradients())
    updates = torch.diff(path, dim=0).abs()
    bound = 0.05 * 1.27 * math.pi / 2
    assert 0.99 * bound < updates.max() <= bound


def test_a_sudden_gradient_after_a_long_silence_stays_within_the_bound():
    spike = [torch.zeros(7, dtype=torch.float64)] * 20 + [torch.full((7,), 1e10, dtype=torch.float64)]
    path = run(AdamAtan2([parameter()], lr=0.05), spike)
    assert torch.equal(path[19], parameter().detach())
    assert (path[20] - path[19]).abs().max() <= 0.05 * 1.27 * math.pi / 2


def test_a_steady_gradient_moves_by_lr_in_each_step():
    path = run(AdamAtan2([parameter()], lr=0.05, a=4 / math.pi), [torch.full((7,), 3.0)] * 10)
    torch.testing.assert_close(torch.diff(path, dim=0), torch.full_like(path[1:], -0.05), rtol=1e-12, atol=0.0)


def test_without_a_second_moment_an_underflow_is_bounded_and_not_infinite():
    path = run(AdamAtan2([parameter(dtype=torch.float32)], lr=0.05), [torch.full((7,), 1e-30)] * 3)
    assert path.isfinite().all()
    assert (path[-1] - parameter(dtype=torch.float32)).abs().max() <= 3 * 0.05 * 1.27 * math.pi / 2 + 1e-6


@pytest.mark.parametrize("name", ["a", "b"])
def test_a_negative_factor_is_refused(name):
    with pytest.raises(ValueError, match=rf"`AdamAtan2\({name}=...\)` must be at least 0, got -1.0."):
        AdamAtan2([parameter()], **{name: -1.0})
