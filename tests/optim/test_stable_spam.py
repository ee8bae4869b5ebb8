# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import pytest
import torch

from lightning_stable.optim import StableSPAM

STEPS = 70
SHAPES = [(10, 8), (13,), (), (3, 2, 4)]


def gradients(step):
    """Gradients with spikes of entries and of all, sparse rows, missing and all-zero ones, alike for the same step."""
    generator = torch.Generator().manual_seed(1000 + step)
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    if step % 9 == 4:
        found = [gradient * 1000 for gradient in found]
    if step % 7 == 3:
        found[0][2, 3] = -300.0
    if step % 6:
        found[0][6:] = 0.0  # rows of rare tokens
    if step % 5 == 2:
        found[1] = None
    if step % 11 == 6:
        found[3] = torch.zeros_like(found[3])
    return found


def parameters():
    generator = torch.Generator().manual_seed(7)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator, dtype=torch.float64)) for shape in SHAPES]


def run(optimizer, steps):
    for step in steps:
        for parameter, gradient in zip(optimizer.param_groups[0]["params"], gradients(step), strict=True):
            parameter.grad = gradient
        optimizer.step()
    return [parameter.detach().clone() for parameter in optimizer.param_groups[0]["params"]]


def stable_spam_by_hand(
    values, steps, lr, betas, eps, weight_decay, gamma1, gamma2, theta, reset_interval, total_steps, eta_min
):
    """The equations, entry by entry. `values` are lists of numbers; returns where they end."""
    values = [list(entries) for entries in values]
    tensors = [
        {"m": [0.0] * len(w), "v": [0.0] * len(w), "s": 0, "u": 0, "M": 0.0, "a": 0.0, "b": 0.0, "pa": 1.0, "pb": 1.0}
        for w in values
    ]
    for t in range(1, steps + 1):
        scale = 1.0
        if total_steps is not None:
            scale = eta_min + (1 - eta_min) * (1 + math.cos(math.pi * min(t / (total_steps + 1), 1))) / 2
        beta1, beta2 = betas[0] * scale, betas[1]
        for i, gradient in enumerate(gradients(t)):
            state, w = tensors[i], values[i]
            if t % reset_interval == 0:
                state.update(m=[0.0] * len(w), v=[0.0] * len(w), s=0, pm=1.0)
            if gradient is None:
                continue
            g = gradient.flatten().tolist()
            state["s"] += 1
            state["u"] += 1
            # AdaClip
            largest = max(abs(x) for x in g)
            state["M"] = theta * state["M"] + (1 - theta) * largest
            threshold = state["M"] / (1 - theta ** state["u"])
            g = [x / largest * threshold if abs(x) > threshold else x for x in g]
            # AdaGN
            norm = math.sqrt(sum(x * x for x in g))
            state["a"] = gamma1 * scale * state["a"] + (1 - gamma1 * scale) * norm
            state["b"] = gamma2 * state["b"] + (1 - gamma2) * norm**2
            state["pa"] *= gamma1 * scale
            state["pb"] *= gamma2
            if norm > 0:
                mean, spread = state["a"] / (1 - state["pa"]), math.sqrt(state["b"] / (1 - state["pb"]))
                g = [x / norm * mean / (spread + eps) for x in g]
            # Adam
            state["pm"] = state.get("pm", 1.0) * beta1
            for j in range(len(w)):
                w[j] *= 1 - lr * weight_decay
                state["m"][j] = beta1 * state["m"][j] + (1 - beta1) * g[j]
                state["v"][j] = beta2 * state["v"][j] + (1 - beta2) * g[j] ** 2
                denominator = math.sqrt(state["v"][j] / (1 - beta2 ** state["s"])) + eps
                w[j] -= lr * state["m"][j] / (1 - state["pm"]) / denominator
    return values


SETTINGS = {
    "lr": 1e-2,
    "betas": (0.9, 0.99),
    "eps": 1e-8,
    "weight_decay": 0.1,
    "gamma1": 0.7,
    "gamma2": 0.9,
    "theta": 0.9,
    "reset_interval": 20,
    "total_steps": None,
    "eta_min": 0.5,
}


@pytest.mark.parametrize(
    ("small", "alone"), [(2**14, True), (0, True), (0, False)], ids=["together", "one by one", "as if sharded"]
)
@pytest.mark.parametrize("total_steps", [None, 30, 500])
def test_it_follows_its_equations_through_spikes_resets_and_missing_gradients(total_steps, small, alone, monkeypatch):
    monkeypatch.setattr("lightning_stable.optim.chunks.SMALL", small)
    monkeypatch.setattr("lightning_stable.optim.stable_spam._is_on_host_alone", lambda member: alone)
    settings = {**SETTINGS, "total_steps": total_steps}
    start = parameters()
    by_hand = stable_spam_by_hand([p.flatten().tolist() for p in start], STEPS, **settings)
    for ours, expected in zip(run(StableSPAM(start, **settings), range(1, STEPS + 1)), by_hand, strict=True):
        torch.testing.assert_close(ours.flatten(), torch.tensor(expected, dtype=torch.float64), rtol=0, atol=1e-12)


# What the paper promises


def test_one_huge_gradient_hardly_reaches_the_second_moment():
    second_moments = {}
    for name, make in (("AdamW", torch.optim.AdamW), ("StableSPAM", StableSPAM)):
        for spike in (1.0, 1000.0):
            parameter = torch.nn.Parameter(torch.zeros(100, dtype=torch.float64))
            optimizer = make([parameter], lr=1e-3)
            generator = torch.Generator().manual_seed(0)
            for step in range(200):
                gradient = torch.randn(100, generator=generator, dtype=torch.float64)
                parameter.grad = gradient * (spike if step == 100 else 1.0)
                optimizer.step()
            second_moments[name, spike] = optimizer.state[parameter]["exp_avg_sq"].mean().item()
    assert second_moments["AdamW", 1000.0] > 1000 * second_moments["AdamW", 1.0]
    assert second_moments["StableSPAM", 1000.0] < 1.5 * second_moments["StableSPAM", 1.0]


def test_the_trajectory_does_not_depend_on_the_size_of_the_loss():
    ends = []
    for size in (1.0, 2.0**20):
        start = parameters()
        optimizer = StableSPAM(start, **{**SETTINGS, "eps": 1e-30})
        for step in range(1, 30):
            for parameter, gradient in zip(start, gradients(step), strict=True):
                parameter.grad = None if gradient is None else gradient * size
            optimizer.step()
        ends.append([parameter.detach().clone() for parameter in start])
    torch.testing.assert_close(*ends, rtol=0, atol=1e-12)


# What the official code gets wrong


def test_the_step_of_a_reset_uses_the_fresh_moments():
    parameter = torch.nn.Parameter(torch.zeros(4, dtype=torch.float64))
    optimizer = StableSPAM([parameter], lr=1.0, reset_interval=10, betas=(0.9, 0.999), eps=1e-30)
    for step in range(1, 12):
        before = parameter.detach().clone()
        sign = 1.0 if step < 10 else -1.0  # the old momentum would go on the other way
        parameter.grad = torch.full((4,), sign, dtype=torch.float64)
        optimizer.step()
        if step >= 10:
            moved = before - parameter.detach()
            torch.testing.assert_close(moved, -torch.ones(4, dtype=torch.float64), rtol=1e-6, atol=0)
    assert optimizer.state[parameter]["step"] == 2


def test_clipping_is_as_strict_after_a_reset_as_before():
    """The spike's share of the update is the same whether a reset has just been or not."""
    moved = []
    for reset_interval in (None, 50):
        parameter = torch.nn.Parameter(torch.zeros(50, dtype=torch.float64))
        optimizer = StableSPAM([parameter], reset_interval=reset_interval)
        generator = torch.Generator().manual_seed(0)
        for step in range(1, 53):
            parameter.grad = torch.randn(50, generator=generator, dtype=torch.float64)
            if step == 52:
                parameter.grad[7] = 1e4
            optimizer.step()
        moved.append(optimizer.state[parameter]["statistics"][2].item())  # the mean norm, after clipping
    assert moved[0] == moved[1] < 100  # with the official counter 1600


def test_the_cosine_stays_down_after_the_end():
    parameter = torch.nn.Parameter(torch.zeros(1, dtype=torch.float64))
    optimizer = StableSPAM([parameter], total_steps=10, eta_min=0.5, reset_interval=None, betas=(0.8, 0.999))
    products = [1.0]
    for _ in range(40):
        parameter.grad = torch.ones(1, dtype=torch.float64)
        optimizer.step()
        products.append(optimizer.state[parameter]["beta1_product"].item())
    used = [after / before for before, after in itertools.pairwise(products)]
    assert used[0] == pytest.approx(0.8 * (0.5 + 0.25 * (1 + math.cos(math.pi / 11))))
    assert used[10:] == pytest.approx([0.4] * 30)
    assert sorted(used, reverse=True) == pytest.approx(used)


@pytest.mark.parametrize("small", [2**14, 0])
@pytest.mark.parametrize("stop", [13, 20, 21, 37])
def test_a_resume_is_bit_identical(stop, small, tmp_path, monkeypatch):
    monkeypatch.setattr("lightning_stable.optim.chunks.SMALL", small)
    settings = {**SETTINGS, "total_steps": 60}
    expected = run(StableSPAM(parameters(), **settings), range(1, 50))
    first = StableSPAM(parameters(), **settings)
    run(first, range(1, stop))
    torch.save((first.state_dict(), first.param_groups[0]["params"]), tmp_path / "state.pt")
    state, values = torch.load(tmp_path / "state.pt", weights_only=True)
    second = StableSPAM(values, **SETTINGS)
    second.load_state_dict(state)
    assert all(torch.equal(a, b) for a, b in zip(run(second, range(stop, 50)), expected, strict=True))


@pytest.mark.parametrize("small", [2**14, 0])
@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_tensor_with_a_nan_or_infinity_is_left_out_as_a_whole(bad, small, monkeypatch):
    monkeypatch.setattr("lightning_stable.optim.chunks.SMALL", small)
    broken, healthy = (torch.nn.Parameter(torch.zeros(3)) for _ in range(2))
    twin = torch.nn.Parameter(torch.zeros(3))
    optimizer, undisturbed = StableSPAM([broken, healthy], lr=0.1), StableSPAM([twin], lr=0.1)
    for step in range(10):
        before = broken.detach().clone()
        broken.grad = torch.tensor([1.0, bad if step == 5 else 1.0, 2.0])
        healthy.grad, twin.grad = torch.ones(3), None if step == 5 else torch.tensor([1.0, 1.0, 2.0])
        optimizer.step()
        undisturbed.step()
        assert torch.equal(before, broken) == (step == 5)
    assert torch.equal(broken, twin)
    for name, value in optimizer.state[broken].items():
        assert torch.equal(value, undisturbed.state[twin][name])


@pytest.mark.parametrize("small", [2**14, 0])
def test_a_first_gradient_that_is_too_large_to_be_squared_is_left_out(small, monkeypatch):
    monkeypatch.setattr("lightning_stable.optim.chunks.SMALL", small)
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = StableSPAM([parameter], lr=0.1)
    parameter.grad = torch.tensor([1e20, 1.0])
    optimizer.step()
    assert not parameter.any()
    parameter.grad = torch.ones(2)
    optimizer.step()
    assert parameter.isfinite().all()
    assert parameter.all()


def test_gradients_are_left_as_they_were():
    start = parameters()
    run(StableSPAM(start, **SETTINGS), range(1, 5))  # the fourth holds spikes
    kept = gradients(4)
    assert all(torch.equal(p.grad, g) for p, g in zip(start, kept, strict=True) if g is not None)


def test_numbers_keep_their_precision_in_a_state_of_single_precision_parameters(tmp_path):
    parameter = torch.nn.Parameter(torch.zeros(3))
    optimizer = StableSPAM([parameter], total_steps=10)
    for _ in range(3):
        parameter.grad = torch.rand(3)
        optimizer.step()
    other = StableSPAM([torch.nn.Parameter(torch.zeros(3))])
    other.load_state_dict(optimizer.state_dict())
    for name, value in optimizer.state[parameter].items():
        loaded = next(iter(other.state.values()))[name]
        assert loaded.dtype == value.dtype
        assert torch.equal(loaded, value)


def test_a_large_tensor_is_the_same_in_one_piece_and_in_chunks(monkeypatch):
    ends = []
    for chunk in (2**18, 16):
        monkeypatch.setattr("lightning_stable.optim.chunks.CHUNK", chunk)
        ends.append(run(StableSPAM(parameters(), **SETTINGS), range(1, 30)))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-13)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"theta": 1.0}, r"`StableSPAM\(theta=...\)` must be at least 0 and less than 1, got 1.0"),
        ({"gamma1": -0.1}, r"`StableSPAM\(gamma1=...\)` must be at least 0 and less than 1, got -0.1"),
        ({"gamma2": 2.0}, r"`StableSPAM\(gamma2=...\)` must be at least 0 and less than 1, got 2.0"),
        ({"reset_interval": 0}, r"`StableSPAM\(reset_interval=...\)` must be at least 1, got 0"),
        ({"total_steps": 0}, r"`StableSPAM\(total_steps=...\)` must be at least 1, got 0"),
        ({"eta_min": 1.5}, r"`StableSPAM\(eta_min=...\)` must be from 0 to 1, got 1.5"),
    ],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(ValueError, match=message):
        StableSPAM(parameters(), **argument)
