# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.optim.grams import Grams

STEPS = 64


def gradients(seed=0, size=7):
    """One gradient a step, of very different sizes; none in every ninth."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(STEPS, size, generator=generator, dtype=torch.float64).exp_().sub_(1.0)
    return [None if step % 9 == 4 else gradient for step, gradient in enumerate(drawn)]


def reference_grams(start, gradients, lr, beta1, beta2, eps, weight_decay):
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
            sign = (g > 0) - (g < 0)
            w[i] = w[i] - lr * sign * abs(m_hat) / (math.sqrt(v_hat) + eps)
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


def parameter(size=7):
    return torch.nn.Parameter(torch.linspace(-1.0, 2.0, size, dtype=torch.float64))


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
@pytest.mark.parametrize(
    "given",
    [{}, {"betas": (0.8, 0.95)}, {"eps": 0.1}, {"betas": (0.0, 0.0)}],
    ids=["defaults", "betas", "eps", "no_memory"],
)
def test_it_follows_its_equations(given, weight_decay):
    arguments = {"betas": (0.9, 0.999), "eps": 1e-6, **given}
    path = run(Grams([parameter()], lr=0.05, weight_decay=weight_decay, **given), gradients())
    expected = reference_grams(
        parameter().tolist(), gradients(), 0.05, *arguments["betas"], arguments["eps"], weight_decay
    )
    torch.testing.assert_close(path[-1], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_each_step_has_adam_s_size_and_the_sign_of_the_gradient():
    ours, adams = parameter(), parameter()
    grams, adam = Grams([ours], lr=0.05, eps=1e-8), torch.optim.Adam([adams], lr=0.05, eps=1e-8)
    against_momentum = 0
    for gradient in gradients():
        before, theirs_before = ours.detach().clone(), adams.detach().clone()
        for weight, optimizer in ((ours, grams), (adams, adam)):
            weight.grad = None if gradient is None else gradient.clone()
            optimizer.step()
        if gradient is None:
            continue
        update, theirs = ours.detach() - before, adams.detach() - theirs_before
        torch.testing.assert_close(update.abs(), theirs.abs(), rtol=1e-9, atol=1e-12)
        assert torch.equal(update.sign(), -gradient.sign())
        against_momentum += int((theirs.sign() != update.sign()).sum())
    assert against_momentum > 50


def steps_uphill(kind):
    """How many of 300 steps on a bowl go, to first order, uphill."""
    weight, curvature = torch.nn.Parameter(torch.tensor([1.0, -0.5, 2.0])), torch.tensor([10.0, 3.0, 1.0])
    optimizer = kind([weight], lr=0.05)
    uphill = 0
    for _ in range(300):
        optimizer.zero_grad()
        (curvature * weight.square()).sum().backward()
        before = weight.detach().clone()
        optimizer.step()
        uphill += int((weight.detach() - before) @ weight.grad > 0)
    return uphill


def test_no_step_goes_uphill_where_adam_s_overshoot():
    assert steps_uphill(Grams) == 0
    assert steps_uphill(torch.optim.Adam) > 50


def test_momentum_keeps_beta1_of_itself_and_not_one_minus_beta1():
    """An average the wrong way round keeps 0.1 of m at beta1 = 0.9: after gradients 1 and 0 it is 0.09, not 0.9."""
    weight = parameter()
    optimizer = Grams([weight])
    run(optimizer, [torch.ones(7), torch.zeros(7)])
    expected = torch.full((7,), 0.9 * 0.1, dtype=torch.float64)
    torch.testing.assert_close(optimizer.state[weight]["exp_avg"], expected, rtol=1e-12, atol=0.0)


def test_the_denominator_is_the_root_of_v_over_its_correction_and_not_of_v_over_the_correction_s_root():
    """The first step of a gradient g is lr g / (|g| + eps); with sqrt(v / sqrt(c2)) it would be 5.6 times as large."""
    path = run(Grams([parameter()], lr=0.05, eps=0.0), [torch.full((7,), 3.0)])
    torch.testing.assert_close(path[0], parameter().detach() - 0.05, rtol=1e-12, atol=1e-12)


def test_gradients_are_not_replaced_by_their_signs():
    weight = parameter()
    weight.grad = torch.full_like(weight, 3.0)
    Grams([weight]).step()
    assert torch.equal(weight.grad, torch.full_like(weight, 3.0))


def test_an_entry_without_gradient_stays_although_it_has_momentum():
    path = run(Grams([parameter()], lr=0.05), [torch.ones(7), torch.zeros(7)])
    assert torch.equal(path[1], path[0])


def test_it_agrees_with_pytorch_optimizer_since_its_average_is_the_right_way_round():
    theirs = pytest.importorskip("pytorch_optimizer")
    ours = run(Grams([parameter()], lr=0.05, weight_decay=0.1), gradients()[:4])
    other = run(theirs.Grams([parameter()], lr=0.05, weight_decay=0.1), gradients()[:4])
    torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-12)
