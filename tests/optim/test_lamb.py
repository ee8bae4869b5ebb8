# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.optim import LAMB

SHAPES = [(6, 4), (5,), (), (3, 2, 4)]


def gradients(step, size=1.0):
    generator = torch.Generator().manual_seed(step)
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) * size for shape in SHAPES]
    if step % 5 == 2:
        found[1] = None
    return found


def parameters():
    generator = torch.Generator().manual_seed(7)
    made = [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]
    made[3].data.zero_()  # whose trust ratio is 1
    return made


def run(optimizer, steps, **more):
    for step in steps:
        params = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        for parameter, gradient in zip(params, gradients(step, **more), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach().clone() for group in optimizer.param_groups for parameter in group["params"]]


def lamb_by_hand(values, steps, lr, betas, eps, weight_decay, adapt=True):
    values = [list(entries) for entries in values]
    m, v, t = [[0.0] * len(w) for w in values], [[0.0] * len(w) for w in values], [0] * len(values)
    for step in steps:
        for i, gradient in enumerate(gradients(step)):
            if gradient is None:
                continue
            w, t[i] = values[i], t[i] + 1
            u = []
            for j, g in enumerate(gradient.flatten().tolist()):
                m[i][j] = betas[0] * m[i][j] + (1 - betas[0]) * g
                v[i][j] = betas[1] * v[i][j] + (1 - betas[1]) * g * g
                mean, square = m[i][j] / (1 - betas[0] ** t[i]), v[i][j] / (1 - betas[1] ** t[i])
                u.append(mean / (math.sqrt(square) + eps) + weight_decay * w[j])
            weight, update = (math.sqrt(sum(x * x for x in entries)) for entries in (w, u))
            ratio = weight / update if adapt and weight > 0 and update > 0 else 1.0
            values[i] = [x - lr * ratio * y for x, y in zip(w, u, strict=True)]
    return values


@pytest.mark.parametrize("adapt", [True, False])
def test_it_follows_its_equations(adapt):
    settings = {"lr": 0.02, "betas": (0.9, 0.99), "eps": 1e-6, "weight_decay": 0.1, "adapt": adapt}
    start = parameters()
    by_hand = lamb_by_hand([p.flatten().tolist() for p in start], range(1, 71), **settings)
    for ours, expected in zip(run(LAMB(start, **settings), range(1, 71)), by_hand, strict=True):
        torch.testing.assert_close(ours.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


def test_every_tensor_moves_by_lr_times_its_norm_however_large_its_gradient_is():
    start = parameters()
    optimizer = LAMB(start, lr=0.01)
    for step in range(1, 20):
        before = [parameter.detach().clone() for parameter in start]
        run(optimizer, [step], size=1e4 if step % 2 else 1.0)
        for old, new in zip(before, start, strict=True):
            if old.norm() > 0 and new.grad is not None:
                assert (new - old).norm().item() == pytest.approx(0.01 * old.norm().item(), rel=1e-12)


def test_the_size_of_one_tensors_gradients_changes_nothing():
    ends = [run(LAMB(parameters(), lr=0.01, eps=0.0), range(1, 30), size=size) for size in (1.0, 2.0**14)]
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


def test_it_is_adam_with_its_decay_in_the_step_where_it_does_not_adapt():
    ours, theirs = parameters(), parameters()
    expected = run(torch.optim.Adam(theirs, lr=0.01, eps=1e-6), range(1, 30))
    torch.testing.assert_close(run(LAMB(ours, lr=0.01, weight_decay=0.0, adapt=False), range(1, 30)), expected)


def test_an_entry_that_is_not_finite_is_left_out_of_the_step_and_of_the_norms():
    broken, healthy = torch.nn.Parameter(torch.ones(3)), torch.nn.Parameter(torch.ones(3))
    optimizer = LAMB([broken, healthy], lr=0.1, weight_decay=0.0)
    for bad in (1.0, torch.nan, 1.0):
        before = broken.detach().clone()
        broken.grad, healthy.grad = torch.tensor([1.0, bad, 1.0]), torch.ones(3)
        optimizer.step()
        assert (broken[1] == before[1]) == (bad != 1.0)
    assert broken.isfinite().all()
    assert healthy.isfinite().all()


def test_a_resume_is_bit_identical(tmp_path):
    expected = run(LAMB(parameters(), lr=0.02), range(1, 40))
    first = LAMB(parameters(), lr=0.02)
    values = run(first, range(1, 17))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second = LAMB([torch.nn.Parameter(value) for value in values], lr=0.02)
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert all(torch.equal(a, b) for a, b in zip(run(second, range(17, 40)), expected, strict=True))


def test_a_large_tensor_is_the_same_in_one_piece_and_in_chunks(monkeypatch):
    ends = []
    for chunk in (2**18, 5):
        monkeypatch.setattr("lightning_stable.optim.chunks.CHUNK", chunk)
        ends.append(run(LAMB(parameters(), lr=0.02), range(1, 30)))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-13)
