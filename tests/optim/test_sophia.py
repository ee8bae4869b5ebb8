# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch

from lightning_stable.optim.sophia import SophiaG

SHAPES = [(3, 4), (5,), (1,)]


def gradients_of(steps, seed=0, missing=False):
    """For every step one gradient per shape; some are missing."""
    generator = torch.Generator().manual_seed(seed)
    rows = []
    for step in range(steps):
        row = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
        if missing and step % 7 in (2, 3):
            row[step % 3] = None
        rows.append(row)
    return rows


def start(seed=9):
    generator = torch.Generator().manual_seed(seed)
    return [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def reference_sophia(values, gradients, curvatures, every, lr, betas, rho, weight_decay, batch_size, eps=1e-15):
    """Every entry by itself, as in algorithm 3 of the paper."""
    finals = []
    for index, value in enumerate(values):
        entries = []
        for position, weight in enumerate(value.flatten().tolist()):
            m = h = 0.0
            for step, row in enumerate(gradients):
                if step % every == 0 and curvatures[step][index] is not None:
                    g_hat = curvatures[step][index].flatten()[position].item()
                    h = betas[1] * h + (1 - betas[1]) * batch_size * g_hat * g_hat
                if row[index] is None:
                    continue
                g = row[index].flatten()[position].item()
                weight *= 1 - lr * weight_decay
                m = betas[0] * m + (1 - betas[0]) * g
                weight -= lr * math.copysign(1.0, m) * min(abs(m) / (rho * h + eps), 1.0)
            entries.append(weight)
        finals.append(torch.tensor(entries, dtype=torch.float64).view(value.shape))
    return finals


def run(parameters, optimizer, gradients, curvatures, every, first=0, batch_size=None):
    for step, (row, hats) in enumerate(zip(gradients, curvatures, strict=True), first):
        for parameter, gradient in zip(parameters, row, strict=True):
            parameter.grad = None if gradient is None else gradient.to(parameter.dtype)
        if step % every == 0:
            optimizer.update_hessian(hats, batch_size)
        optimizer.step()


def one(value=(0.0, 0.0), **settings):
    parameter = torch.nn.Parameter(torch.as_tensor(value))
    return parameter, SophiaG([parameter], **{"lr": 0.1, "weight_decay": 0.0, **settings})


@pytest.mark.parametrize("every", [1, 10])
@pytest.mark.parametrize("from_call", [True, False])
def test_it_matches_a_plain_loop_over_the_entries(every, from_call):
    gradients, curvatures = gradients_of(70, missing=True), gradients_of(70, seed=1, missing=True)
    settings = {"lr": 0.02, "betas": (0.9, 0.95), "rho": 0.01, "weight_decay": 0.2}
    parameters = [torch.nn.Parameter(value) for value in start()]
    optimizer = SophiaG(parameters, **settings, batch_size=5120 if from_call else 24)
    run(parameters, optimizer, gradients, curvatures, every, batch_size=24 if from_call else None)
    expected = reference_sophia(start(), gradients, curvatures, every, **settings, batch_size=24)
    for parameter, value in zip(parameters, expected, strict=True):
        torch.testing.assert_close(parameter.detach(), value, rtol=1e-12, atol=1e-12)
    assert 0.0 < optimizer.win_rate() < 1.0  # both branches of the minimum were taken


def test_the_step_after_a_measurement_uses_it():
    parameter, optimizer = one(betas=(0.0, 0.9), rho=0.5)
    parameter.grad = torch.tensor([1.0, -1.0])
    optimizer.update_hessian([torch.tensor([2.0, 3.0])], batch_size=20)
    optimizer.step()
    h = torch.tensor([0.1 * 20 * 4.0, 0.1 * 20 * 9.0])
    torch.testing.assert_close(parameter.detach(), -0.1 * torch.tensor([1.0, -1.0]) / (0.5 * h))


def test_without_a_measurement_it_is_the_sign_of_the_momentum():
    parameter, optimizer = one()
    parameter.grad = torch.tensor([1e-6, -1e6])
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.1, 0.1]))
    assert optimizer.win_rate() == 0.0


def test_no_entry_ever_moves_by_more_than_the_learning_rate():
    parameters = [torch.nn.Parameter(value) for value in start()]
    optimizer = SophiaG(parameters, lr=0.01, weight_decay=0.0)
    for step, row in enumerate(gradients_of(80)):
        before = [parameter.detach().clone() for parameter in parameters]
        scale = 10.0 ** (step % 13 - 6)
        hats = [g.flip(0) / scale for g in row] if step % 3 == 0 else [None] * 3
        run(parameters, optimizer, [[g * scale for g in row]], [hats], every=1)
        moved = [(new.detach() - old).abs().max() for new, old in zip(parameters, before, strict=True)]
        assert max(moved) <= 0.01 * (1 + 1e-12)


def steps_to_converge(condition, lr, kind, limit=10000):
    """On 1/2 sum_i lambda_i x_i^2, from where each direction has the same share of the loss, down to 1e-4 of it."""
    curvature = torch.tensor([1.0, condition], dtype=torch.float64)
    x = torch.nn.Parameter(curvature.rsqrt())
    sophia = SophiaG([x], lr=lr, betas=(0.0, 0.0), rho=1.0, weight_decay=0.0)
    adam = torch.optim.Adam([x], lr=lr)
    for step in range(limit):
        if (curvature * x.detach().square()).sum() < 2e-4:
            return step
        x.grad = curvature * x.detach()
        if kind == "sophia":
            sophia.update_hessian([curvature.sqrt()], batch_size=1)  # exact: h = lambda
            sophia.step()
        elif kind == "adam":
            adam.step()
        else:
            x.data.sub_(x.grad.sign(), alpha=lr)
    return limit


def test_its_speed_does_not_depend_on_the_condition_number_where_that_of_sign_descent_and_adam_does():
    assert [steps_to_converge(condition, 0.3, "sophia") for condition in (1, 1e2, 1e4)] == [13, 13, 13]
    # each with the best of 13 learning rates for each condition number
    rates = [1.3 / 2**power for power in range(13)]
    sign = [min(steps_to_converge(c, lr, "sign", limit=600) for lr in rates) for c in (1, 1e2)]
    adam = [min(steps_to_converge(c, lr, "adam", limit=100) for lr in rates[:6]) for c in (1, 1e2, 1e4)]
    assert sign == [49, 391]
    assert adam[0] < 20
    assert adam[1] > 30
    assert adam[2] > 60


def test_a_tenth_of_the_samples_says_as_much_about_the_curvature():
    """B is part of h: B g_hat^2 does not depend on B, when g_hat is the mean of B independent gradients."""
    generator = torch.Generator().manual_seed(0)
    means = []
    for size in (10, 1000):
        parameter, optimizer = one(torch.zeros(5000), betas=(0.0, 0.0))
        optimizer.update_hessian([torch.randn(size, 5000, generator=generator).mean(0)], batch_size=size)
        means.append(optimizer.state[parameter]["hessian"].mean().item())
    assert means == pytest.approx([1.0, 1.0], rel=0.1)


def test_the_win_rate_is_the_share_of_moving_entries_that_were_not_clipped():
    first, second = torch.nn.Parameter(torch.zeros(3)), torch.nn.Parameter(torch.zeros(2))
    optimizer = SophiaG([{"params": [first]}, {"params": [second], "rho": 100.0}], betas=(0.0, 0.0), rho=1.0)
    assert math.isnan(optimizer.win_rate())
    first.grad, second.grad = torch.tensor([0.5, -2.0, 0.0]), torch.tensor([50.0, -50.0])
    optimizer.update_hessian([torch.ones(3), torch.ones(2)], batch_size=1)
    optimizer.step()
    assert optimizer.win_rate() == 0.75


def test_gradients_are_taken_from_the_parameters_when_none_are_given_and_left_as_they_are():
    given, taken = one(), one()
    gradient = torch.tensor([3.0, -4.0])
    taken[0].grad = gradient.clone()
    taken[1].update_hessian(batch_size=2)
    given[1].update_hessian([gradient], batch_size=2)
    assert torch.equal(taken[1].state[taken[0]]["hessian"], given[1].state[given[0]]["hessian"])
    assert torch.equal(taken[0].grad, gradient)
    assert given[0].grad is None


@pytest.mark.parametrize("saved_at", [13, 20, 21])
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_a_run_goes_on_from_its_state_bit_for_bit(tmp_path, saved_at, dtype):
    gradients, curvatures = gradients_of(40, missing=True), gradients_of(40, seed=1)
    straight = [torch.nn.Parameter(value.to(dtype)) for value in start()]
    run(straight, SophiaG(straight), gradients, curvatures, every=10)

    parameters = [torch.nn.Parameter(value.to(dtype)) for value in start()]
    optimizer = SophiaG(parameters)
    run(parameters, optimizer, gradients[:saved_at], curvatures[:saved_at], every=10)
    torch.save(optimizer.state_dict(), tmp_path / "state.pt")
    resumed = [torch.nn.Parameter(parameter.detach().clone()) for parameter in parameters]
    other = SophiaG(resumed, lr=1.0)
    other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    run(resumed, other, gradients[saved_at:], curvatures[saved_at:], every=10, first=saved_at)
    assert all(torch.equal(a, b) for a, b in zip(straight, resumed, strict=True))
    assert other.state[resumed[0]]["hessian"].dtype == (torch.float64 if dtype == torch.float64 else torch.float32)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf, 1e30])
def test_entries_of_a_measurement_that_are_not_finite_leave_the_curvature_alone(bad):
    parameter, optimizer = one(betas=(0.9, 0.5))
    optimizer.update_hessian([torch.tensor([1.0, 1.0])], batch_size=2)
    optimizer.update_hessian([torch.tensor([bad, 3.0])], batch_size=2)
    assert optimizer.state[parameter]["hessian"].tolist() == [1.0, 9.5]


def test_a_curvature_beyond_the_range_of_float16_is_left_out_too():
    parameter = torch.nn.Parameter(torch.zeros(2, dtype=torch.float16))
    optimizer = SophiaG([parameter], moment_dtype="parameter")
    optimizer.update_hessian([torch.tensor([600.0, 1.0], dtype=torch.float16)], batch_size=100)
    assert optimizer.state[parameter]["hessian"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_an_entry_whose_gradient_is_not_finite_stays_with_its_momentum_and_curvature(bad):
    parameter, optimizer = one((1.0, 1.0), weight_decay=0.1)
    parameter.grad = torch.tensor([1.0, 1.0])
    optimizer.update_hessian(batch_size=3)
    optimizer.step()
    before = copy.deepcopy([parameter.data, *(optimizer.state[parameter][name] for name in ("exp_avg", "hessian"))])
    parameter.grad = torch.tensor([bad, 1.0])
    optimizer.step()
    after = [parameter.data, *(optimizer.state[parameter][name] for name in ("exp_avg", "hessian"))]
    assert [new[0] for new in after] == [old[0] for old in before]
    assert after[0][1] < before[0][1]


@pytest.mark.parametrize("value", [torch.zeros(0, 3), torch.ones(1), torch.ones(4, 3).t(), torch.ones(3, 4).bfloat16()])
def test_any_tensor_will_do(value):
    parameter = torch.nn.Parameter(value)
    optimizer = SophiaG([parameter], weight_decay=0.0)
    parameter.grad = torch.ones_like(value)
    optimizer.update_hessian([torch.ones(value.shape, dtype=value.dtype)], batch_size=5)
    optimizer.step()
    h = 0.01 * 5
    expected = torch.ones(value.shape) - 1e-4 * min(0.035 / (0.04 * h), 1.0)
    torch.testing.assert_close(parameter.detach(), expected.to(value.dtype))


def test_zero_gradients_move_nothing_but_decay():
    parameter, optimizer = one((1.0, 2.0), weight_decay=0.5)
    parameter.grad = torch.zeros(2)
    optimizer.update_hessian(batch_size=1)
    optimizer.step()
    torch.testing.assert_close(parameter.detach(), torch.tensor([0.95, 1.9]))
    assert math.isnan(optimizer.win_rate())


def test_a_parameter_without_a_gradient_stays_and_so_does_the_curvature_of_one_without_a_measurement():
    parameter, optimizer = one((1.0, 2.0), weight_decay=0.5)
    optimizer.update_hessian([None])
    optimizer.step()
    assert parameter.tolist() == [1.0, 2.0]
    assert parameter not in optimizer.state


def test_maximize_goes_the_other_way():
    up, down = one(maximize=True), one()
    for parameter, optimizer in (up, down):
        parameter.grad = torch.tensor([1.0, -3.0])
        optimizer.update_hessian(batch_size=100)
        optimizer.step()
    assert torch.equal(up[0], -down[0])


def test_every_group_has_its_own_rate_and_batch_size():
    first, second = torch.nn.Parameter(torch.zeros(1)), torch.nn.Parameter(torch.zeros(1))
    groups = [{"params": [first], "batch_size": 10}, {"params": [second], "betas": (0.9, 0.5), "batch_size": 2}]
    optimizer = SophiaG(groups, betas=(0.9, 0.9))
    optimizer.update_hessian([torch.ones(1), torch.ones(1)])
    assert optimizer.state[first]["hessian"].item() == pytest.approx(1.0)
    assert optimizer.state[second]["hessian"].item() == pytest.approx(1.0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, r"`SophiaG\(lr=\.\.\.\)` must be at least 0, got -1.0"),
        ({"betas": (0.9, 1.0)}, r"`SophiaG\(betas=\.\.\.\)` must be at least 0 and less than 1, got 1.0"),
        ({"rho": 0.0}, r"`SophiaG\(rho=\.\.\.\)` must be above 0, got 0.0"),
        ({"rho": math.nan}, r"`SophiaG\(rho=\.\.\.\)` must be above 0, got nan"),
        ({"eps": 0.0}, r"`SophiaG\(eps=\.\.\.\)` must be above 0, got 0.0"),
        ({"weight_decay": -0.1}, r"`SophiaG\(weight_decay=\.\.\.\)` must be at least 0, got -0.1"),
        ({"batch_size": 0}, r"`SophiaG\(batch_size=\.\.\.\)` must be at least 1, got 0"),
        ({"moment_dtype": "float16"}, r"`SophiaG\(moment_dtype=\.\.\.\)` must be \"float32\" or \"parameter\""),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        SophiaG([torch.nn.Parameter(torch.zeros(1))], **arguments)


@pytest.mark.parametrize(
    ("gradients", "batch_size", "message"),
    [
        ([], None, r"`SophiaG\.update_hessian\(gradients=\.\.\.\)` must have one entry for each of the 1 .*got 0"),
        ([torch.ones(3)], None, r"must have the parameters' shapes; that of parameter 0 is \(2,\), got \(3,\)"),
        ([torch.ones(2).to_sparse()], None, r"must be dense; that of parameter 0, of shape \(2,\), is sparse\. Use"),
        ([torch.ones(2)], 0, r"`SophiaG\.update_hessian\(batch_size=\.\.\.\)` must be at least 1, got 0"),
    ],
)
def test_bad_measurements_are_refused_and_change_nothing(gradients, batch_size, message):
    parameter, optimizer = one()
    with pytest.raises(ValueError, match=message):
        optimizer.update_hessian(gradients, batch_size)
    assert parameter not in optimizer.state


def test_without_any_estimate_it_says_once_that_it_is_sign_descent():
    parameter = torch.nn.Parameter(torch.zeros(2))
    optimizer = SophiaG([parameter])
    parameter.grad = torch.ones(2)
    for _ in range(19):
        optimizer.step()
    with pytest.warns(UserWarning, match=r"has taken 20 steps without .* Add the callback `GaussNewtonBartlett\(\)`"):
        optimizer.step()
    optimizer.step()
