# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable import optim
from lightning_stable.optim import reset_moments


def trained(kind, steps=20, **settings):
    torch.manual_seed(0)
    parameter = torch.nn.Parameter(torch.randn(8, 4, dtype=torch.float64))
    optimizer = kind([parameter], lr=1e-3, **settings)
    generator = torch.Generator().manual_seed(1)
    for _ in range(steps):
        parameter.grad = torch.randn(8, 4, generator=generator, dtype=torch.float64)
        optimizer.step()
    return parameter, optimizer


def reference_adam_update(m, v, step, gradient, beta1=0.9, beta2=0.999, eps=1e-8):
    """The size of the update in units of lr."""
    m = beta1 * m + (1 - beta1) * gradient
    v = beta2 * v + (1 - beta2) * gradient**2
    return abs(m / (1 - beta1 ** (step + 1)) / (math.sqrt(v / (1 - beta2 ** (step + 1))) + eps))


def update_after_reset(moments, steps=500):
    parameter, optimizer = trained(torch.optim.AdamW, steps=steps, weight_decay=0.0)
    reset_moments(optimizer, moments)
    before = parameter.detach().clone()
    parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    return (parameter.detach() - before).abs().mean().item() / 1e-3


def test_resetting_all_makes_the_next_update_a_full_sign_step():
    assert update_after_reset("all") == pytest.approx(1.0, abs=1e-4)
    assert reference_adam_update(0.0, 0.0, 0, 1.0) == pytest.approx(1.0, abs=1e-4)


def test_resetting_the_first_moment_alone_makes_the_next_update_small():
    assert update_after_reset("first") == pytest.approx(0.1, abs=0.02)
    assert reference_adam_update(0.0, 1 - 0.999**500, 500, 1.0) == pytest.approx(0.1, abs=0.01)


def test_zeroing_both_but_keeping_the_counter_would_overshoot_and_is_not_what_all_does():
    assert reference_adam_update(0.0, 0.0, 500, 1.0) == pytest.approx(1.98, abs=0.01)
    assert update_after_reset("all") < 1.01


CASES = [
    (torch.optim.Adam, {}, {"exp_avg"}, {"exp_avg", "exp_avg_sq"}),
    (torch.optim.AdamW, {"amsgrad": True}, {"exp_avg"}, {"exp_avg", "exp_avg_sq", "max_exp_avg_sq"}),
    (torch.optim.AdamW, {"fused": True}, {"exp_avg"}, {"exp_avg", "exp_avg_sq"}),
    (torch.optim.Adamax, {}, {"exp_avg"}, {"exp_avg", "exp_inf"}),
    (torch.optim.NAdam, {}, {"exp_avg"}, {"exp_avg", "exp_avg_sq", "mu_product"}),
    (torch.optim.RAdam, {}, {"exp_avg"}, {"exp_avg", "exp_avg_sq"}),
    (torch.optim.Adafactor, {}, set(), {"row_var", "col_var"}),
    (torch.optim.Adadelta, {}, set(), {"square_avg", "acc_delta"}),
    (torch.optim.Adagrad, {"initial_accumulator_value": 0.1}, set(), {"sum"}),
    (
        torch.optim.RMSprop,
        {"momentum": 0.9, "centered": True},
        {"momentum_buffer"},
        {"momentum_buffer", "square_avg", "grad_avg"},
    ),
    (torch.optim.SGD, {"momentum": 0.9}, {"momentum_buffer"}, {"momentum_buffer"}),
    (torch.optim.SGD, {}, set(), set()),
]
CASES += [(torch.optim.Muon, {}, {"momentum_buffer"}, {"momentum_buffer"})] if hasattr(torch.optim, "Muon") else []


@pytest.mark.parametrize("moments", ["first", "all"])
@pytest.mark.parametrize(("kind", "settings", "first", "everything"), CASES)
def test_every_torch_optimizer_is_reset_in_place_to_its_start(kind, settings, first, everything, moments):
    parameter, optimizer = trained(kind, **settings)
    names = first if moments == "first" else everything
    held = dict(optimizer.state[parameter])
    copies = {name: value.clone() for name, value in held.items() if isinstance(value, torch.Tensor)}
    assert reset_moments(optimizer, moments) == len(names)
    start = {"mu_product": 1.0, "sum": 0.1}
    for name, value in copies.items():
        now = optimizer.state[parameter][name]
        assert now is held[name]
        restarted = name in names or (name == "step" and moments == "all" and names)
        assert torch.equal(now, torch.full_like(value, start.get(name, 0.0)) if restarted else value), name


@pytest.mark.parametrize(("kind", "settings", "first", "everything"), CASES)
def test_after_resetting_all_the_optimizer_goes_on_like_a_new_one(kind, settings, first, everything):
    parameter, optimizer = trained(kind, **settings)
    reset_moments(optimizer, "all")
    other = torch.nn.Parameter(parameter.detach().clone())
    new = kind([other], lr=1e-3, **settings)
    for _ in range(3):
        parameter.grad, other.grad = torch.full_like(parameter, 0.3), torch.full_like(other, 0.3)
        optimizer.step()
        new.step()
    torch.testing.assert_close(parameter, other, rtol=1e-12, atol=1e-12)


def test_a_moment_that_is_nan_becomes_zero():
    parameter, optimizer = trained(torch.optim.AdamW)
    optimizer.state[parameter]["exp_avg"].fill_(math.nan)
    reset_moments(optimizer)
    assert not optimizer.state[parameter]["exp_avg"].any()


def test_a_new_optimizer_and_an_empty_buffer_have_nothing_to_reset():
    parameter = torch.nn.Parameter(torch.ones(2))
    assert reset_moments(torch.optim.AdamW([parameter]), "all") == 0
    optimizer = torch.optim.SGD([parameter], lr=0.1, momentum=0.9)
    optimizer.state[parameter]["momentum_buffer"] = None
    assert reset_moments(optimizer, "all") == 0
    assert optimizer.state[parameter]["momentum_buffer"] is None


def test_counters_that_are_plain_numbers_or_live_in_the_group_restart_too():
    parameter, optimizer = trained(torch.optim.AdamW)
    optimizer.state[parameter]["step"] = 20
    optimizer.param_groups[0]["step"] = 20
    reset_moments(optimizer)
    assert (optimizer.state[parameter]["step"], optimizer.param_groups[0]["step"]) == (20, 20)
    reset_moments(optimizer, "all")
    assert (optimizer.state[parameter]["step"], optimizer.param_groups[0]["step"]) == (0, 0)


def test_state_that_is_not_known_is_left_alone_and_named():
    parameter, optimizer = trained(torch.optim.ASGD)
    before = {name: value.clone() for name, value in optimizer.state[parameter].items()}
    with pytest.warns(UserWarning, match="left these state tensors of ASGD alone.*: ax, eta, mu"):
        assert reset_moments(optimizer, "all") == 0
    assert all(torch.equal(optimizer.state[parameter][name], value) for name, value in before.items())


def test_an_unknown_choice_is_refused():
    _, optimizer = trained(torch.optim.SGD)
    with pytest.raises(ValueError, match=r'`reset_moments\(moments=\.\.\.\)` must be "first" or "all", got \'second\''):
        reset_moments(optimizer, "second")


def test_our_own_optimizers_have_no_state_it_does_not_know():
    for kind in (optim.SPAM, optim.StableSPAM, optim.SophiaG, optim.DiffGrad, optim.AdamAtan2, optim.Grams):
        parameter = torch.nn.Parameter(torch.zeros(2))
        optimizer = kind([parameter])
        for _ in range(3):
            parameter.grad = torch.ones(2)
            optimizer.step()
        assert optim.reset_moments(optimizer, moments="all") >= 2  # a warning would be an error
        optimizer.step()
        assert optimizer.state[parameter]["step"] == 1
        assert optimizer.state[parameter].get("beta1_product", 0.9) == 0.9
