# SPDX-License-Identifier: Apache-2.0
"""What every optimizer owes: gradients of all kinds, torch's customs, and arguments refused in their own words."""

import random
from collections.abc import Callable, Iterable

import jsonargparse
import pytest
import torch
from lightning.pytorch.cli import instantiate_class
from torch.optim import Optimizer

from lightning_stable.optim import StepGate
from tests.contracts.optimizer_runs import (
    OPTIMIZERS,
    STEPS,
    busy,
    constant,
    exceptions_without_a_test,
    frozen,
    gradients_at,
    make_weights,
    take,
    train,
)
from tests.contracts.optimizer_runs import pytest_generate_tests as pytest_generate_tests
from tests.faulty_runs import assert_same

BY_THE_BASE = "the base optimizer's affair, which need not be one of ours"
NO_SCALER = "a GradScaler steps without the closure that SAM calls twice; SAM says so"
# What is not asked of whom, and why. This list may only shrink.
NOT_ASKED = {
    ("SAM", "test_an_entry_that_is_not_finite_is_left_out_and_spoils_no_other"): BY_THE_BASE,
    ("SAM", "test_a_group_that_joins_later_is_refused_like_the_first"): BY_THE_BASE,
    ("SAM", "test_what_torch_sets_for_fused_optimizers_is_honoured"): BY_THE_BASE,
    ("SAM", "test_numbers_it_cannot_optimize_are_refused"): BY_THE_BASE,
    ("SAM", "test_a_run_under_a_grad_scaler_equals_one_without"): NO_SCALER,
    ("SAM", "test_a_grad_scaler_skips_a_step_whose_gradients_overflow"): NO_SCALER,
    ("SAM", "test_a_step_without_a_closure_will_do"): "the closure is what SAM is about",
}
# Tests of an argument, asked of those that have it.
ABOUT = {
    "test_ascending_is_descending_on_negated_gradients": "maximize",
    "test_a_beta_out_of_its_bounds_is_refused": "betas",
    "test_an_eps_out_of_its_bounds_is_refused": "eps",
    "test_a_weight_decay_out_of_its_bounds_is_refused": "weight_decay",
}
pytestmark = pytest.mark.filterwarnings("ignore:`SophiaG` has taken 20 steps without")  # here on purpose


def test_every_exception_is_one_of_a_test():
    assert not exceptions_without_a_test(globals())


def test_the_room_is_not_empty():
    assert {kind.__name__ for kind in OPTIMIZERS} >= {"SPAM", "StableSPAM"}


def test_it_lowers_the_loss_of_a_regression(kind):
    generator = torch.Generator().manual_seed(0)
    inputs = torch.randn(64, 4, generator=generator)
    targets = inputs @ torch.tensor([[1.0], [-2.0], [0.5], [0.0]])
    weight = torch.nn.Parameter(torch.zeros(4, 1))
    optimizer, losses = kind([weight], lr=0.02), []
    for _ in range(300):

        def closure():
            optimizer.zero_grad()
            loss = (inputs @ weight - targets).square().mean()
            loss.backward()
            return loss

        losses.append(optimizer.step(closure).item())
    assert losses[-1] < 0.05 * losses[0]


# Gradients


def test_parameters_without_a_gradient_or_without_need_of_one_stay_and_have_no_state(kind):
    weights = make_weights([(3, 4), (5,), (2,)])
    weights[2].requires_grad_(False)
    optimizer = busy(kind, weights, weight_decay=0.1)
    for step in range(7):
        take(optimizer, weights, [gradients_at(step, weights)[0], None, None])
    start = make_weights([(3, 4), (5,), (2,)])
    assert torch.equal(weights[1], start[1])
    assert torch.equal(weights[2], start[2])
    assert list(optimizer.state_dict()["state"]) == [0]


def test_gradients_that_are_0_move_nothing_at_first_and_break_nothing_later(kind):
    weights = make_weights()
    optimizer = busy(kind, weights, weight_decay=0.0)
    for _ in range(7):
        take(optimizer, weights, constant(0.0, weights))
    assert_same(weights, make_weights())
    train(optimizer, weights, range(7))
    for _ in range(7):
        take(optimizer, weights, constant(0.0, weights))
    assert all(weight.isfinite().all() for weight in weights)


@pytest.mark.parametrize("first", [True, False], ids=["first_step", "later"])
@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_an_entry_that_is_not_finite_is_left_out_and_spoils_no_other(kind, bad, first):
    weights = make_weights()
    optimizer = busy(kind, weights, weight_decay=0.0, **({"spike_threshold": 0.0} if kind.__name__ == "SPAM" else {}))
    train(optimizer, weights, range(0 if first else 7))
    before, _ = frozen(optimizer, weights)
    gradients = constant(1.0, weights)
    gradients[0][1, 2] = bad
    take(optimizer, weights, gradients)
    values, state = frozen(optimizer, weights)
    assert values[0][1, 2] == before[0][1, 2]
    assert all(each.isfinite().all() for each in values)
    assert all(each.isfinite().all() for moments in state["state"].values() for each in moments.values())
    assert bool((values[1] != before[1]).all())
    take(optimizer, weights, constant(-1.0, weights))
    assert all(weight.isfinite().all() for weight in weights)
    assert weights[0][1, 2] != before[0][1, 2]


def test_gradients_are_only_read(kind):
    weights = make_weights()
    optimizer = busy(kind, weights, weight_decay=0.1)
    for step in range(STEPS):
        gradients = gradients_at(step, weights)
        take(optimizer, weights, gradients)
        assert_same([weight.grad for weight in weights], gradients_at(step, weights))
        assert all(weight.grad is gradient for weight, gradient in zip(weights, gradients, strict=True))


def test_ascending_is_descending_on_negated_gradients(kind):
    up, down = make_weights(), make_weights()
    ascent, descent = busy(kind, up, maximize=True), busy(kind, down)
    for step in range(STEPS):
        gradients = gradients_at(step, up)
        take(ascent, up, gradients)
        take(descent, down, [None if each is None else -each for each in gradients])
    assert_same(up, down)


# Calls


def test_the_closure_s_value_comes_back_and_gradients_are_enabled_in_it(kind):
    (weight,) = weights = make_weights([(3,)])
    optimizer = busy(kind, weights)
    seen = []

    def closure():
        optimizer.zero_grad()
        loss = weight.square().sum()
        loss.backward()
        seen.append((torch.is_grad_enabled(), loss))
        return {"loss": loss}

    with torch.no_grad():
        returned = optimizer.step(closure)
    assert returned["loss"] is seen[0][1]
    assert all(enabled for enabled, _ in seen)
    assert torch.is_grad_enabled()


def test_a_step_without_a_closure_will_do(kind):
    weights, others = make_weights(), make_weights()
    optimizer, expected = busy(kind, weights), busy(kind, others)
    for step in range(7):
        for weight, gradient in zip(weights, gradients_at(step, weights), strict=True):
            weight.grad = gradient
        assert optimizer.step() is None
    train(expected, others, range(7))
    assert_same(weights, others)


def test_torch_s_hooks_are_called_once_a_step(kind):
    weights = make_weights()
    optimizer, called = busy(kind, weights), []
    optimizer.register_step_pre_hook(lambda *_: called.append("before"))
    optimizer.register_step_post_hook(lambda *_: called.append("after"))
    train(optimizer, weights, range(3))
    assert called == ["before", "after"] * 3


def test_a_group_may_join_later_with_a_rate_of_its_own(kind):
    weights = make_weights()
    optimizer = busy(kind, weights[:3])
    train(optimizer, weights[:3], range(4))
    before = [weight.detach().clone() for weight in weights]
    optimizer.add_param_group({"params": weights[3:], "lr": 0.0})
    optimizer.add_param_group({"params": [late := torch.nn.Parameter(torch.ones(3))], "lr": 0.02})
    train(optimizer, [*weights, late], range(4, STEPS))
    assert_same([weight.detach() for weight in weights[3:]], before[3:])
    assert not torch.equal(weights[0], before[0])
    assert bool((late != 1).all())
    assert late.isfinite().all()


def test_a_group_that_joins_later_is_refused_like_the_first(kind):
    weights = make_weights()
    optimizer = busy(kind, weights)
    with refused(kind, "lr"):
        optimizer.add_param_group({"params": make_weights([(3,)]), "lr": -1.0})
    assert len(optimizer.param_groups) == 1
    train(optimizer, weights, range(3))


def test_a_rate_may_be_a_tensor(kind):
    weights, others = make_weights(), make_weights()
    train(busy(kind, weights, lr=torch.tensor(0.25)), weights, range(STEPS))
    train(busy(kind, others, lr=0.25), others, range(STEPS))
    assert_same(weights, others)


def test_a_scheduler_sets_the_rate_and_at_rate_0_nothing_moves(kind):
    weights = make_weights()
    optimizer = busy(kind, weights, weight_decay=0.1)
    scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: step % 2)
    for step in range(STEPS):
        before, _ = frozen(optimizer, weights)
        train(optimizer, weights, [step])
        scheduler.step()
        assert torch.equal(weights[0], before[0]) is (step % 2 == 0)
        assert torch.equal(weights[5], before[5]) is (step % 2 == 0)


def test_it_uses_no_global_randomness(kind):
    python, torch_state = random.getstate(), torch.get_rng_state()
    weights = make_weights()
    train(busy(kind, weights), weights, range(STEPS))
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_a_step_gate_vetoes_and_scales_it(kind):
    weights, free = make_weights(), make_weights()
    optimizer, expected = busy(kind, weights), busy(kind, free)
    gate = StepGate.attach(getattr(optimizer, "base", optimizer), user="test")  # in front of what takes the step
    for step in range(7):
        gate.veto = True
        before = frozen(optimizer, weights)
        assert take(optimizer, weights, gradients_at(50 + step, weights)) == 7.0
        assert_same(frozen(optimizer, weights), before)
        gate.veto = False
        gate.scales["test"] = expected.param_groups[0]["lr"] / 0.01
        take(optimizer, weights, gradients_at(step, weights))
        take(expected, free, gradients_at(step, free))
        expected.param_groups[0]["lr"] *= 0.5
    assert_same(weights, free)


# GradScaler


def backward(weights, gradients, scale=lambda loss: loss):
    for weight in weights:
        weight.grad = None
    pairs = zip(weights, gradients, strict=True)
    scale(torch.stack([(weight * each).sum() for weight, each in pairs if each is not None]).sum()).backward()


def test_a_run_under_a_grad_scaler_equals_one_without(kind):
    weights, free = make_weights(), make_weights()
    optimizer, expected = busy(kind, weights), busy(kind, free)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10, growth_interval=3)
    for step in range(STEPS):
        backward(weights, gradients_at(step, weights), scaler.scale)
        scaler.step(optimizer)
        scaler.update()
        backward(free, gradients_at(step, free))
        expected.step()
    assert_same(frozen(optimizer, weights), frozen(expected, free))


def test_a_grad_scaler_skips_a_step_whose_gradients_overflow(kind):
    weights = make_weights()
    optimizer = busy(kind, weights)
    train(optimizer, weights, range(4))
    before = frozen(optimizer, weights)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    gradients = constant(1.0, weights)
    gradients[0][0, 0] = torch.inf
    backward(weights, gradients, scaler.scale)
    scaler.step(optimizer)
    scaler.update()
    assert_same(frozen(optimizer, weights), before)
    assert scaler.get_scale() == 2.0**9


def test_what_torch_sets_for_fused_optimizers_is_honoured(kind):
    weights, free = make_weights(), make_weights()
    optimizer, expected = busy(kind, weights), busy(kind, free)
    optimizer.grad_scale = torch.tensor(2.0**10)
    optimizer.found_inf = torch.tensor(0.0)
    for step in range(STEPS):
        scaled = [None if each is None else each * 2.0**10 for each in gradients_at(step, weights)]
        take(optimizer, weights, scaled)
        take(expected, free, gradients_at(step, free))
    assert_same(frozen(optimizer, weights), frozen(expected, free))
    optimizer.found_inf = torch.tensor(1.0)
    assert take(optimizer, weights, constant(torch.inf, weights)) == 7.0
    assert_same(frozen(optimizer, weights), frozen(expected, free))


# Arguments


def refused(kind, argument):
    return pytest.raises(ValueError, match=rf"^`{kind.__name__}\({argument}=\.\.\.\)` must ")


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_rate_out_of_its_bounds_is_refused(kind, value):
    with refused(kind, "lr"):
        kind(make_weights(), lr=value)


@pytest.mark.parametrize("betas", [(1.0, 0.9), (0.9, 1.0), (-0.1, 0.9), (0.9, float("nan"))])
def test_a_beta_out_of_its_bounds_is_refused(kind, betas):
    with refused(kind, "betas"):
        kind(make_weights(), betas=betas)


@pytest.mark.parametrize("value", [-1e-8, float("nan")])
def test_an_eps_out_of_its_bounds_is_refused(kind, value):
    with refused(kind, "eps"):
        kind(make_weights(), eps=value)


@pytest.mark.parametrize("value", [-0.1, float("nan")])
def test_a_weight_decay_out_of_its_bounds_is_refused(kind, value):
    with refused(kind, "weight_decay"):
        kind(make_weights(), weight_decay=value)


def test_nothing_to_optimize_is_refused(kind):
    with refused(kind, "params"):
        kind(parameter for parameter in ())


def test_numbers_it_cannot_optimize_are_refused(kind):
    for dtype in (torch.complex64, torch.int64):
        with refused(kind, "params"):
            kind([torch.nn.Parameter(torch.zeros(3, dtype=dtype), requires_grad=False)])


def test_a_sparse_gradient_is_refused_and_moves_nothing(kind):
    weights = make_weights([(3, 4), (5, 2)])
    optimizer = busy(kind, weights)
    before, _ = frozen(optimizer, weights)
    with refused(kind, "params"):
        take(optimizer, weights, [torch.ones(3, 4), torch.ones(5, 2).to_sparse()])
    assert_same([weight.detach() for weight in weights], before)


def test_it_constructs_from_yaml(kind):
    path = f"{kind.__module__}.{kind.__name__}"
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--callable", type=Callable[[Iterable], Optimizer])
    parser.add_subclass_arguments(Optimizer, "subclass", skip={"params"}, instantiate=False)
    config = parser.parse_args([f"--callable={path}", "--callable.lr=0.5", f"--subclass={path}", "--subclass.lr=0.5"])
    instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # until jsonargparse 4.48
    weights = [make_weights() for _ in range(3)]
    expected = kind(weights[0], lr=0.5)
    train(expected, weights[0], range(3))
    made = instantiate(config).callable(weights[1])
    for optimizer, own in ((made, weights[1]), (instantiate_class(weights[2], config.subclass.as_dict()), weights[2])):
        assert type(optimizer) is kind
        train(optimizer, own, range(3))
        assert_same(frozen(optimizer, own), frozen(expected, weights[0]))
