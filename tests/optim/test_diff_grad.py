# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.optim.diff_grad import DiffGrad

STEPS = 64


def gradients(seed=0, size=7):
    """One gradient a step, of very different sizes; none in every ninth."""
    generator = torch.Generator().manual_seed(seed)
    drawn = torch.randn(STEPS, size, generator=generator, dtype=torch.float64).exp_().sub_(1.0)
    return [None if step % 9 == 4 else gradient for step, gradient in enumerate(drawn)]


def reference_diff_grad(start, gradients, lr, beta1, beta2, eps, weight_decay):
    size = len(start)
    w, m, v, before, t = list(start), [0.0] * size, [0.0] * size, [0.0] * size, 0
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
            xi = 1 / (1 + math.exp(-abs(before[i] - g)))
            w[i] = w[i] - lr * xi * m_hat / (math.sqrt(v_hat) + eps)
            before[i] = g
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
    arguments = {"betas": (0.9, 0.999), "eps": 1e-8, **given}
    path = run(DiffGrad([parameter()], lr=0.05, weight_decay=weight_decay, **given), gradients())
    expected = reference_diff_grad(
        parameter().tolist(), gradients(), 0.05, *arguments["betas"], arguments["eps"], weight_decay
    )
    torch.testing.assert_close(path[-1], torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=1e-12)


def test_a_constant_gradient_has_half_of_adam_s_step_from_the_second_on():
    constant = [torch.full((7,), 2.0, dtype=torch.float64)] * 20
    ours = torch.diff(run(DiffGrad([parameter()], lr=0.05), constant), dim=0)
    adams = torch.diff(run(torch.optim.Adam([parameter()], lr=0.05), constant), dim=0)
    torch.testing.assert_close(ours, adams / 2, rtol=1e-12, atol=0.0)


def test_a_gradient_that_changes_a_lot_has_all_of_adam_s_step():
    alternating = [torch.full((7,), 100.0 * (-1) ** step, dtype=torch.float64) for step in range(20)]
    ours = run(DiffGrad([parameter()], lr=0.05), alternating)
    torch.testing.assert_close(ours, run(torch.optim.Adam([parameter()], lr=0.05), alternating), rtol=1e-12, atol=0.0)


def test_it_is_not_plain_adam_as_where_the_friction_is_computed_and_thrown_away():
    ours = run(DiffGrad([parameter()], lr=0.05), gradients())
    adams = run(torch.optim.Adam([parameter()], lr=0.05), gradients())
    updates = torch.diff(ours, prepend=parameter().detach()[None], dim=0).abs()
    theirs = torch.diff(adams, prepend=parameter().detach()[None], dim=0).abs()
    moved = theirs > 0
    ratio = updates[moved] / theirs[moved]
    assert ratio.min() >= 0.5
    assert ratio.max() < 1.0
    assert ratio.std() > 0.05


def test_the_gradient_before_is_a_copy_and_not_the_buffer_that_the_next_backward_overwrites():
    weight = parameter()
    optimizer = DiffGrad([weight], lr=0.05)
    weight.grad = torch.zeros_like(weight)
    for gradient in (1.0, 5.0):
        weight.grad.fill_(gradient)
        optimizer.step()
        assert torch.equal(optimizer.state[weight]["previous_grad"], weight.grad)
        assert optimizer.state[weight]["previous_grad"].data_ptr() != weight.grad.data_ptr()
    expected = reference_diff_grad(parameter().tolist(), [torch.full((7,), g) for g in (1.0, 5.0)], 0.05, 0.9, 0.999, 1e-8, 0.0)  # fmt: skip  # noqa: E501
    torch.testing.assert_close(weight.detach(), torch.tensor(expected, dtype=torch.float64), rtol=1e-12, atol=0.0)


def test_weight_decay_is_not_skipped_and_not_slowed_by_friction():
    still = [torch.zeros(7, dtype=torch.float64)] * 10
    path = run(DiffGrad([parameter()], lr=0.05, weight_decay=0.1), still)
    torch.testing.assert_close(path[-1], parameter().detach() * (1 - 0.05 * 0.1) ** 10, rtol=1e-12, atol=0.0)


def test_after_a_step_without_a_gradient_the_last_one_there_was_counts_as_the_one_before():
    given = [torch.full((7,), value, dtype=torch.float64) for value in (1.0, -2.0, 0.5)]
    gaps = [given[0], None, given[1], None, None, given[2]]
    ours = run(DiffGrad([parameter()], lr=0.05), gaps)[-1]
    assert torch.equal(ours, run(DiffGrad([parameter()], lr=0.05), given)[-1])


def test_an_entry_that_was_not_finite_keeps_the_gradient_before_it():
    weight = parameter(2)
    given = [torch.tensor(values, dtype=torch.float64) for values in ((1.0, 1.0), (torch.nan, 2.0), (3.0, 3.0))]
    optimizer = DiffGrad([weight], lr=0.05)
    run(optimizer, given[:2])
    assert optimizer.state[weight]["previous_grad"].tolist() == [1.0, 2.0]
    assert run(optimizer, given[2:]).isfinite().all()


def test_it_agrees_with_pytorch_optimizer_where_that_has_friction():
    theirs = pytest.importorskip("pytorch_optimizer")
    ours = run(DiffGrad([parameter()], lr=0.05, eps=0.0, weight_decay=0.1), gradients()[:4])
    other = run(theirs.DiffGrad([parameter()], lr=0.05, eps=0.0, weight_decay=0.1), gradients()[:4])
    torch.testing.assert_close(ours, other, rtol=1e-12, atol=1e-12)
