# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_stable.transforms.gradient_centralization import GradientCentralization


def centralized(gradient):
    parameter = torch.nn.Parameter(torch.zeros(gradient.shape, dtype=gradient.dtype))
    parameter.grad = gradient.clone()
    GradientCentralization().transform([parameter])
    return parameter.grad


def draw(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64) + 0.7


def reference_centralize(gradient):
    result = gradient.clone()
    for row in result:
        values = row.flatten().tolist()
        row -= sum(values) / len(values)
    return result


@pytest.mark.parametrize("shape", [(4, 3), (1, 5), (6, 2, 3), (3, 2, 3, 3), (2, 2, 2, 2, 2)])
def test_it_follows_its_equation(shape):
    for seed in range(12):
        gradient = draw(*shape, seed=seed)
        expected = reference_centralize(gradient)
        torch.testing.assert_close(centralized(gradient), expected, rtol=1e-12, atol=1e-12)


def test_what_flows_into_each_output_sums_to_zero():
    gradient = centralized(draw(64, 3, 7, 7).float())
    assert gradient.sum((1, 2, 3)).abs().max() < 1e-4
    assert gradient.norm() > 10


def test_it_is_a_projection():
    once = centralized(draw(5, 9))
    torch.testing.assert_close(centralized(once), once, rtol=1e-12, atol=1e-12)


def test_sgd_keeps_the_mean_of_each_row_of_the_weights():
    """The paper's constraint: e.w stays what it was at initialisation."""
    weight = torch.nn.Parameter(draw(4, 6, seed=99))
    means, start = weight.detach().mean(1).clone(), weight.detach().clone()
    optimizer, transform = torch.optim.SGD([weight], lr=0.1), GradientCentralization()
    for step in range(60):
        optimizer.zero_grad()
        (weight @ draw(6, seed=step)).square().sum().backward()
        transform.transform([weight])
        optimizer.step()
    torch.testing.assert_close(weight.detach().mean(1), means, rtol=1e-10, atol=1e-12)
    assert (weight.detach() - start).norm() > 0.1


@pytest.mark.parametrize("shape", [(), (1,), (7,), (5, 1), (4, 1, 1), (0, 3), (3, 0), (0,)])
def test_without_rows_of_two_entries_nothing_changes(shape):
    gradient = draw(*shape)
    assert torch.equal(centralized(gradient), gradient)


def test_the_only_input_of_a_layer_keeps_its_gradient():
    gradient = draw(8, 1)
    assert torch.equal(centralized(gradient), gradient)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_a_tensor_that_is_not_finite_is_left_alone_in_all_its_rows(bad):
    gradient = draw(3, 4)
    gradient[1, 2] = bad
    torch.testing.assert_close(centralized(gradient), gradient, rtol=0, atol=0, equal_nan=True)


def test_the_mean_of_bfloat16_rows_is_taken_in_float32():
    gradient = draw(4, 4096).bfloat16()
    expected = (gradient.double() - gradient.double().mean(1, keepdim=True)).bfloat16()
    torch.testing.assert_close(centralized(gradient), expected, rtol=2**-7, atol=1e-6)


def test_a_transposed_gradient_has_rows_all_the_same():
    gradient = draw(5, 3).t()
    torch.testing.assert_close(centralized(gradient), reference_centralize(gradient), rtol=1e-12, atol=1e-12)
    assert centralized(gradient).stride() == gradient.stride()
