# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.transforms.orthogonal_gradient import OrthogonalGradient


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def projected(weight, gradient, **arguments):
    parameter = torch.nn.Parameter(weight.clone())
    parameter.grad = gradient.clone()
    OrthogonalGradient(**arguments).transform([parameter])
    return parameter.grad


def dot(left, right):
    return sum(a * b for a, b in zip(left.flatten().tolist(), right.flatten().tolist(), strict=True))


def reference_perp_grad(weight, gradient, max_gain):
    share = dot(weight, gradient) / dot(weight, weight)
    perp = gradient - share * weight
    gain = math.sqrt(dot(gradient, gradient)) / math.sqrt(dot(perp, perp))
    return perp * min(gain, max_gain)


@pytest.mark.parametrize("max_gain", [1.0, 1.02, 100.0, math.inf])
@pytest.mark.parametrize("shape", [(4, 3), (2, 3, 2), (1, 2)])
def test_it_follows_its_equation(shape, max_gain):
    for seed in range(20):
        weight, gradient = draw(*shape, seed=2 * seed), draw(*shape, seed=2 * seed + 1)
        expected = reference_perp_grad(weight, gradient, max_gain)
        torch.testing.assert_close(projected(weight, gradient, max_gain=max_gain), expected, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-3)])
def test_what_comes_out_is_orthogonal_to_the_weights_and_as_long_as_what_went_in(dtype, tolerance):
    weight = draw(30, 20).to(dtype)
    gradient = (draw(30, 20, seed=1) + 2 * draw(30, 20)).to(dtype)
    result, weight = projected(weight, gradient).double(), weight.double()
    assert abs(dot(result, weight)) < tolerance * result.norm() * weight.norm()
    assert result.norm() == pytest.approx(gradient.double().norm().item(), rel=tolerance)


# What was wrong with the official code, by the numbers of the review


def test_o1_a_step_of_sgd_leaves_the_norm_of_the_weights_as_it_was_to_first_order():
    """Projected before the closure that computes them, the gradients of this step gave -0.9 instead of 0."""
    weight = torch.nn.Parameter(draw(4, 3))
    optimizer, start = torch.optim.SGD([weight], lr=0.1), weight.detach().clone()

    def closure():
        optimizer.zero_grad()
        loss = (weight - 2).square().sum()
        loss.backward()
        OrthogonalGradient().transform([weight])
        return loss

    optimizer.step(closure)
    update = weight.detach() - start
    assert update.norm() > 0.1
    assert abs(dot(update, start)) < 1e-12


def test_o2_the_optimizer_keeps_its_own_state():
    weight = torch.nn.Parameter(draw(4, 3))
    optimizer = torch.optim.AdamW([weight])
    weight.grad = draw(4, 3, seed=1)
    OrthogonalGradient().transform([weight])
    optimizer.step()
    assert set(optimizer.state_dict()["state"][0]) == {"step", "exp_avg", "exp_avg_sq"}
    assert OrthogonalGradient().state_dict() == {}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_o3_one_entry_is_left_alone_and_never_enlarged_noise(dtype):
    for seed in range(50):
        weight, gradient = draw(1, seed=seed).to(dtype), draw(1, seed=seed + 99).to(dtype)
        assert torch.equal(projected(weight, gradient), gradient)
        assert projected(weight, gradient, min_ndim=0).item() == 0.0
        assert projected(weight[None], gradient[None]).item() == 0.0


def test_o4_tensors_that_are_not_contiguous_are_changed_in_place():
    weight, gradient = draw(4, 3), draw(4, 3, seed=1)
    parameter = torch.nn.Parameter(weight.t())
    parameter.grad = held = gradient.t()
    OrthogonalGradient().transform([parameter])
    expected = reference_perp_grad(weight, draw(4, 3, seed=1), 100.0)
    torch.testing.assert_close(gradient, expected, rtol=1e-12, atol=1e-12)
    assert parameter.grad is held


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32])
def test_o5_zero_gradients_and_zero_weights_give_no_nan(dtype):
    zero, some = torch.zeros(3, 2, dtype=dtype), draw(3, 2).to(dtype)
    assert torch.equal(projected(some, zero), zero)
    assert torch.equal(projected(zero, some), some)
    assert torch.equal(projected(zero, zero), zero)


@pytest.mark.parametrize(
    ("dtype", "size"), [(torch.float32, 10), (torch.float32, 1_000_000), (torch.float64, 1000), (torch.bfloat16, 1000)]
)
def test_o6_a_gradient_along_the_weights_becomes_zero_and_not_noise(dtype, size):
    weight = draw(1, size).to(dtype)
    for share in (0.37, -1.9, 1e-3):
        assert not projected(weight, share * weight, max_gain=math.inf).any()


def test_o6_the_gain_has_a_cap():
    weight, gradient = torch.tensor([[1.0, 0.0]]), torch.tensor([[1.0, 1e-4]])
    assert projected(weight, gradient, max_gain=math.inf).norm() == pytest.approx(1.0)
    assert projected(weight, gradient, max_gain=50.0)[0, 1] == pytest.approx(50.0 * 1e-4)


def test_tensors_of_few_axes_and_those_that_are_empty_are_passed_over():
    vector = draw(5, seed=1)
    assert torch.equal(projected(draw(5), vector), vector)
    assert not torch.equal(projected(draw(5), vector, min_ndim=1), vector)
    assert projected(draw(0, 3), draw(0, 3)).shape == (0, 3)
    assert torch.equal(projected(draw(), draw(seed=1)), draw(seed=1))


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_gradient_that_is_not_finite_is_left_alone(bad):
    gradient = draw(3, 4)
    gradient[1, 2] = bad
    torch.testing.assert_close(projected(draw(3, 4, seed=1), gradient), gradient, rtol=0, atol=0, equal_nan=True)


def accuracy_on_unseen_sums(transform, epochs=220, prime=53):
    """Learn a + b modulo a prime from 40% of the pairs, in full batches and without weight decay."""
    pairs = torch.cartesian_prod(torch.arange(prime), torch.arange(prime))
    order = torch.randperm(len(pairs), generator=torch.Generator().manual_seed(0))
    seen, unseen = order[: int(0.4 * len(pairs))], order[int(0.4 * len(pairs)) :]
    inputs, targets = torch.nn.functional.one_hot(pairs, prime).flatten(1).float(), pairs.sum(1) % prime
    with torch.random.fork_rng():
        torch.manual_seed(1)
        layers = [torch.nn.Linear(wide, out, bias=False) for wide, out in ((2 * prime, 200), (200, 200), (200, prime))]
    model = torch.nn.Sequential(layers[0], torch.nn.ReLU(), layers[1], torch.nn.ReLU(), layers[2])
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.01, betas=(0.9, 0.99), weight_decay=0.0)
    for _ in range(epochs):
        optimizer.zero_grad()
        torch.nn.functional.cross_entropy(model(inputs[seen]), targets[seen]).backward()
        if transform is not None:
            transform.transform(model.parameters())
        optimizer.step()
    with torch.no_grad():
        return (model(inputs[unseen]).argmax(1) == targets[unseen]).double().mean().item()


def test_a_network_generalises_at_once_where_without_it_it_only_memorises():
    """The paper's figure: 97% of the unseen sums after 220 epochs, against none."""
    assert accuracy_on_unseen_sums(OrthogonalGradient()) > 0.9
    assert accuracy_on_unseen_sums(None) < 0.1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_ndim": -1}, r"`OrthogonalGradient\(min_ndim=\.\.\.\)` must be at least 0, got -1"),
        ({"max_gain": 0.5}, r"`OrthogonalGradient\(max_gain=\.\.\.\)` must be at least 1, got 0\.5"),
        ({"max_gain": math.nan}, r"`OrthogonalGradient\(max_gain=\.\.\.\)` must be at least 1, got nan"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        OrthogonalGradient(**arguments)
