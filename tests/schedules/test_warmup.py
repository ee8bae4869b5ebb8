# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import pytorch_optimizer
import torch

from lightning_stable.schedules import Linear, ProfileLR, untuned_factor, warmup_factor
from tests.schedules.steps import adamw, first_rates, sgd


def reference_radam(t, beta2):
    longest = 2 / (1 - beta2) - 1
    length = longest - 2 * t * beta2**t / (1 - beta2**t)
    if length <= 4:
        return None
    return math.sqrt((length - 4) * (length - 2) * longest / ((longest - 4) * (longest - 2) * length))


@pytest.mark.parametrize("start", [0.0, 0.1])
def test_curves_match_their_equations(start):
    for x in (0.1, 0.5, 0.9, 1.0):
        assert warmup_factor(x, "linear", start) == pytest.approx(start + (1 - start) * x)
        cosine = start + (1 - start) * (1 - math.cos(math.pi * x)) / 2
        assert warmup_factor(x, "cosine", start) == pytest.approx(cosine)
        if start:
            assert warmup_factor(x, "exponential", start) == pytest.approx(math.exp((1 - x) * math.log(start)))


def test_the_straight_line_is_torch_s_linear_warmup():
    torch_s = torch.optim.lr_scheduler.LinearLR(sgd(1.0), start_factor=1 / 8, total_iters=7)
    ours = first_rates(ProfileLR(sgd(1.0), Linear(), 99, warmup_steps=8), 8)
    assert ours == pytest.approx(first_rates(torch_s, 8))


def test_a_start_ratio_is_where_the_warmup_comes_from():
    ours = first_rates(ProfileLR(sgd(1.0), Linear(), 99, warmup_steps=4, warmup_start=0.2), 4)
    assert ours == pytest.approx([0.4, 0.6, 0.8, 1.0])


@pytest.mark.parametrize("beta2", [0.9, 0.99, 0.999])
def test_untuned_rules_match_their_equations(beta2):
    for t in range(1, 300):
        assert untuned_factor(t, beta2) == pytest.approx(min(1.0, (1 - beta2) / 2 * t))
        assert untuned_factor(t, beta2, "untuned_exponential") == pytest.approx(1 - math.exp(-(1 - beta2) * t))
        expected = reference_radam(t, beta2)
        if expected is not None:
            assert untuned_factor(t, beta2, "radam") == pytest.approx(expected)


def test_radam_s_rule_on_adam_is_torch_s_radam_where_that_is_adaptive():
    """From the sixth step on; torch begins at a length of 5 and not of 4."""
    start = torch.tensor([1.0, -2.0, 0.5], dtype=torch.float64)
    ours, theirs = torch.nn.Parameter(start.clone()), torch.nn.Parameter(start.clone())
    adam = torch.optim.Adam([ours], lr=0.1, eps=1e-30)
    radam = torch.optim.RAdam([theirs], lr=0.1, eps=1e-30)
    scheduler = ProfileLR(adam, "Linear", 10**9, warmup="radam")
    generator = torch.Generator().manual_seed(0)
    for step in range(40):
        gradient = torch.randn(3, generator=generator, dtype=torch.float64)
        before = ours.detach().clone(), theirs.detach().clone()
        ours.grad, theirs.grad = gradient.clone(), gradient.clone()
        adam.step()
        radam.step()
        scheduler.step()
        if step >= 5:
            torch.testing.assert_close(ours - before[0], theirs - before[1], rtol=1e-6, atol=0)


def test_before_radam_s_rule_is_defined_its_first_value_holds():
    values = [untuned_factor(t, 0.999, "radam") for t in range(1, 8)]
    assert values[0] > 0
    assert len(set(values[:5])) == 1
    assert values[5] > values[4]


def test_a_short_memory_needs_no_radam():
    assert untuned_factor(1, 0.5, "radam") == 1.0


def test_every_group_warms_up_by_its_own_beta2():
    optimizer = adamw(1.0, 1.0)
    optimizer.param_groups[1]["betas"] = (0.9, 0.9)
    with pytest.warns(UserWarning, match="inside the warmup"):
        scheduler = ProfileLR(optimizer, Linear(), 100, warmup="untuned_linear")
    scheduler.jump(9)
    assert scheduler.get_last_lr() == pytest.approx([0.91 * 0.005, 0.91 * 0.5])


@pytest.mark.parametrize(
    ("kind", "beta2"), [("Adan", 0.99), ("AdEMAMix", 0.999), ("CAME", 0.999), ("AdamP", 0.999), ("SophiaH", 0.99)]
)
def test_beta2_is_that_of_the_second_moment(kind, beta2):
    """The third of three is Adan's alone: AdEMAMix and CAME have something else there."""
    optimizer = getattr(pytorch_optimizer, kind)([torch.nn.Parameter(torch.zeros(2, 2))], lr=1.0)
    scheduler = ProfileLR(optimizer, Linear(), 10**9, warmup="untuned_exponential")
    scheduler.jump(9)
    assert scheduler.get_last_lr() == pytest.approx([1 - math.exp(-10 * (1 - beta2))], rel=1e-6)


def test_betas_without_a_second_moment_are_refused():
    optimizer = pytorch_optimizer.Lion([torch.nn.Parameter(torch.zeros(2))])
    said = r'`ProfileLR\(warmup="radam"\)` needs .* second moment, such as AdamW, got Lion. Use `warmup_steps` with'
    with pytest.raises(ValueError, match=said):
        ProfileLR(optimizer, Linear(), 40, warmup="radam")


@pytest.mark.parametrize("rule", ["untuned_linear", "untuned_exponential", "radam"])
def test_untuned_rules_multiply_the_profile(rule):
    rates = first_rates(ProfileLR(adamw(1.0, beta2=0.9), Linear(), 40, warmup=rule), 40)
    assert rates == pytest.approx([untuned_factor(s + 1, 0.9, rule) * (1 - s / 40) for s in range(40)])


def test_untuned_rules_want_adam_and_nothing_else():
    with pytest.raises(ValueError, match=r'`ProfileLR\(warmup="radam"\)` needs an optimizer with two `betas`'):
        ProfileLR(sgd(1.0), Linear(), 40, warmup="radam")
    with pytest.raises(ValueError, match="has its length from beta2: leave `warmup_steps`"):
        ProfileLR(adamw(1.0), Linear(), 40, warmup="radam", warmup_steps=5)
