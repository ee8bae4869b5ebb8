# SPDX-License-Identifier: Apache-2.0
import math
import warnings

import numpy as np
import pytest
import torch

from lightning_stable.schedules import REX, WSD, Cosine, Linear, ProfileLR
from tests.schedules.steps import adamw, advance, first_rates, sgd


def reference_rate(base, step, total_steps, warmup_steps, beta, min_ratio):
    """REX after a linear warmup, in the words of the docstring."""
    if step < warmup_steps:
        return base * (step + 1) / warmup_steps
    z = max(0.0, 1.0 - (step - warmup_steps) / (total_steps - warmup_steps))
    factor = z / ((1.0 - beta) + beta * z)
    return base * (min_ratio + (1.0 - min_ratio) * factor)


@pytest.mark.parametrize("warmup_steps", [0, 1, 7])
@pytest.mark.parametrize(("beta", "min_ratio"), [(0.5, 0.0), (0.9, 0.0), (0.1, 0.1), (0.5, 1.0)])
def test_every_step_runs_at_the_rate_of_the_equation_also_after_the_end(warmup_steps, beta, min_ratio):
    scheduler = ProfileLR(sgd(0.1), REX(beta), 40, warmup_steps=warmup_steps, min_ratio=min_ratio)
    expected = [reference_rate(0.1, step, 40, warmup_steps, beta, min_ratio) for step in range(50)]
    assert first_rates(scheduler, 50) == pytest.approx(expected, abs=1e-15)


def test_the_warmup_starts_above_zero_and_its_last_step_runs_at_the_base_rate():
    assert first_rates(ProfileLR(sgd(1.0), total_steps=10, warmup_steps=4), 5) == [0.25, 0.5, 0.75, 1.0, 1.0]


def test_every_group_keeps_its_own_base_rate():
    for step, rates in enumerate(advance(ProfileLR(sgd(0.1, 0.01), total_steps=10, warmup_steps=2), 12)):
        factor = reference_rate(1.0, step, 10, 2, 0.5, 0.0)
        assert rates == pytest.approx([0.1 * factor, 0.01 * factor])


def test_a_rate_that_somebody_overwrote_is_back_at_the_next_step():
    scheduler = ProfileLR(sgd(1.0), total_steps=4)
    scheduler.optimizer.param_groups[0]["lr"] = 123.0
    scheduler.optimizer.step()
    scheduler.step()
    assert scheduler.get_last_lr() == pytest.approx([6 / 7])


def test_a_new_length_sets_the_rates_at_once():
    scheduler = ProfileLR(adamw(1.0), "OneCycle", total_steps=10)
    advance(scheduler, 10)
    scheduler.total_steps = 20
    straight = ProfileLR(adamw(1.0), "OneCycle", total_steps=20)
    straight.jump(10)
    (group,), (expected,) = scheduler.optimizer.param_groups, straight.optimizer.param_groups
    assert (group["lr"], group["betas"]) == (expected["lr"], expected["betas"])
    assert scheduler.get_last_lr() == [group["lr"]]


def test_last_epoch_places_a_new_scheduler_in_mid_run():
    straight = ProfileLR(sgd(0.1), total_steps=30)
    advance(straight, 10)
    optimizer = sgd(0.1)
    optimizer.param_groups[0]["initial_lr"] = 0.1
    assert ProfileLR(optimizer, total_steps=30, last_epoch=9).get_last_lr() == straight.get_last_lr()


def test_closed_form_and_chained_form_are_one():
    scheduler = ProfileLR(sgd(0.1), total_steps=30)
    advance(scheduler, 10)
    assert scheduler._get_closed_form_lr() == scheduler.get_lr() == scheduler.get_last_lr()


def test_a_group_added_later_follows_the_schedule_from_its_own_base_rate():
    scheduler = ProfileLR(sgd(1.0), total_steps=4)
    advance(scheduler, 1)
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": 0.5})
    assert scheduler.optimizer.param_groups[1]["lr"] == 0.5
    rates = advance(scheduler, 3)
    assert rates[1:] == [pytest.approx([2 / 3, 1 / 3]), pytest.approx([2 / 5, 1 / 5])]


@pytest.mark.parametrize(("lr", "is_warned_of"), [(6 / 7, True), (1.0, False), (0.5, False)])
def test_a_group_that_comes_with_the_rate_of_the_moment_is_warned_of(lr, is_warned_of):
    scheduler = ProfileLR(sgd(1.0, 0.3), total_steps=4)
    advance(scheduler, 1)
    assert scheduler.get_last_lr()[0] == pytest.approx(lr, rel=1e-12) or not is_warned_of
    lr = scheduler.get_last_lr()[0] if is_warned_of else lr
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr})
    with warnings.catch_warnings(record=True) as warned:
        warnings.simplefilter("always")
        advance(scheduler, 2)
    said = [str(one.message) for one in warned]
    assert [("decays twice" in text, "BaseFinetuning" in text) for text in said] == [(True, True)] * is_warned_of


def test_the_curve_is_looked_at_once_a_step_for_all_groups(monkeypatch):
    scheduler, looked = ProfileLR(sgd(*[1.0] * 50), total_steps=4), []
    factor = scheduler.curve.factor
    monkeypatch.setattr(scheduler.curve, "factor", lambda *place: looked.append(place) or factor(*place))
    assert advance(scheduler, 2)[1] == [6 / 7] * 50
    assert len(looked) == 2


def test_a_tensor_rate_stays_the_same_tensor():
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=torch.tensor(0.1))
    held = optimizer.param_groups[0]["lr"]
    scheduler = ProfileLR(optimizer, total_steps=4, warmup_steps=2)
    advance(scheduler, 3)
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == pytest.approx(0.1 * reference_rate(1.0, 3, 4, 2, 0.5, 0.0))
    assert scheduler.base_lrs[0].item() == pytest.approx(0.1)
    scheduler.jump(2)
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == pytest.approx(0.1)
    assert scheduler.get_last_lr()[0] is not held


def test_it_works_inside_torch_s_sequential_schedule():
    optimizer = sgd(1.0)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=100)
    ours = ProfileLR(optimizer, total_steps=4)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's own deprecation of `step(epoch)`, which SequentialLR calls
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [constant, ours], milestones=[2])
        rates = first_rates(scheduler, 6)
    assert rates == pytest.approx([0.5, 0.5, 1, 6 / 7, 2 / 3, 2 / 5])


def test_it_works_as_the_first_of_torch_s_sequential_schedule():
    optimizer = sgd(1.0)
    ours = ProfileLR(optimizer, total_steps=4)
    constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=100)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        scheduler = torch.optim.lr_scheduler.SequentialLR(optimizer, [ours, constant], milestones=[3])
        rates = first_rates(scheduler, 5)
    assert rates == pytest.approx([1, 6 / 7, 2 / 3, 0.5, 0.5])


def test_total_steps_may_come_after_construction():
    late = ProfileLR(sgd(1.0), warmup_steps=3)
    assert late.total_steps is None
    rates = advance(late, 2)
    late.total_steps = 10
    rates += advance(late, 8)
    assert rates == advance(ProfileLR(sgd(1.0), total_steps=10, warmup_steps=3), 10)


@pytest.mark.parametrize("warmup_steps", [0, 3])
def test_leaving_the_warmup_without_total_steps_says_how_to_set_it_and_moves_nothing(warmup_steps):
    scheduler = ProfileLR(sgd(1.0), warmup_steps=warmup_steps)
    advance(scheduler, warmup_steps)
    scheduler.optimizer.step()
    before = scheduler.state_dict()
    with pytest.raises(
        RuntimeError, match=r"REX\(beta=0.5\) needs it after .* steps. Pass `ProfileLR\(total_steps=...\)`"
    ):
        scheduler.step()
    assert scheduler.state_dict() == before
    scheduler.total_steps = 100
    scheduler.step()


def test_a_run_that_ends_inside_the_warmup_is_warned_of_with_numbers():
    said = r'warms up for 100 steps .*warmup_steps=100, warmup="linear".* with `total_steps` set to 2: the run ends'
    with pytest.warns(UserWarning, match=said):
        ProfileLR(sgd(1.0), total_steps=2, warmup_steps=100)
    scheduler = ProfileLR(sgd(1.0), warmup_steps=100)
    with pytest.warns(UserWarning, match=said):
        scheduler.total_steps = 2
    assert first_rates(scheduler, 4) == pytest.approx([0.01, 0.02, 0.03, 0.04])


# Budgets in other units


def test_a_budget_in_tokens_counts_what_steps_have_used():
    scheduler = ProfileLR(sgd(1.0), Linear(), total_steps=1000, unit="tokens")
    rates = []
    for used in (100, 300, 100, 500):
        rates.append(scheduler.get_last_lr()[0])
        scheduler.increment = used
        scheduler.optimizer.step()
        scheduler.step()
    assert rates == pytest.approx([1.0, 0.9, 0.6, 0.5])
    assert (scheduler.position, scheduler.last_epoch) == (1000, 4)
    assert scheduler.get_last_lr() == [0.0]


def test_the_first_step_of_a_budget_in_tokens_need_not_run_at_nothing():
    scheduler = ProfileLR(sgd(1.0), Linear(), total_steps=10_000, warmup_steps=1000, unit="tokens")
    scheduler.increment = 100
    assert scheduler.get_last_lr() == pytest.approx([0.1])
    advance(scheduler, 1)
    scheduler.increment = 300
    assert scheduler.get_last_lr() == pytest.approx([0.2])  # its step was announced as one of 100


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, "3", None])
def test_a_step_that_uses_no_number_is_refused(wrong):
    with pytest.raises(ValueError, match=r"`ProfileLR.increment` must be a number of at least 0, got"):
        ProfileLR(sgd(1.0), total_steps=4, unit="tokens").increment = wrong


def test_fractions_of_an_epoch_do_not_add_up_their_roundings():
    scheduler = ProfileLR(sgd(1.0), Linear(), total_steps=12, unit="epochs")
    scheduler.increment = 1 / 1003
    advance(scheduler, 10 * 1003)
    assert scheduler.position == pytest.approx(10, rel=1e-15)
    rates = scheduler.get_last_lr()
    scheduler.jump(scheduler.position)
    assert scheduler.get_last_lr() == rates
    scheduler.increment = 1 / 7
    advance(scheduler, 7)
    assert scheduler.position == pytest.approx(11, rel=1e-15)


def test_a_budget_in_epochs_or_seconds_may_have_any_length():
    for unit in ("epochs", "seconds"):
        scheduler = ProfileLR(sgd(1.0), Linear(), total_steps=2.5, unit=unit)
        scheduler.increment = 0.5
        assert first_rates(scheduler, 6) == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.0])


def test_larger_increments_go_through_the_same_curve_in_fewer_steps():
    plain = first_rates(ProfileLR(sgd(1.0), total_steps=40), 40)
    scheduler = ProfileLR(sgd(1.0), total_steps=40)
    rates = first_rates(scheduler, 20)
    scheduler.increment = 4
    rates += first_rates(scheduler, 5)
    assert rates == pytest.approx(plain[:20] + plain[20::4])
    assert scheduler.position == 40


# Jumping and finishing


def test_jumping_anywhere_agrees_with_stepping_there():
    stepped = ProfileLR(sgd(0.3), Cosine(), total_steps=30, warmup_steps=4)
    jumped = ProfileLR(sgd(0.3), Cosine(), total_steps=30, warmup_steps=4)
    for step, rate in enumerate(first_rates(stepped, 33)):
        jumped.jump(step)
        assert jumped.get_last_lr() == [rate] == [jumped.optimizer.param_groups[0]["lr"]]
    jumped.jump(10)
    again = ProfileLR(sgd(0.3), Cosine(), total_steps=30, warmup_steps=4)
    expected = first_rates(again, 33)
    assert first_rates(jumped, 5) == expected[10:15]


@pytest.mark.parametrize("wrong", [-1, math.nan, math.inf, "3", None])
def test_jumping_nowhere_is_refused(wrong):
    with pytest.raises(ValueError, match=r"`ProfileLR.jump\(position=...\)` must be a number of at least 0"):
        ProfileLR(sgd(1.0), total_steps=4).jump(wrong)


@pytest.mark.parametrize("curve", ["linear", "1-sqrt"])
def test_a_cooldown_begins_at_the_rate_of_the_moment_and_ends_at_the_minimum(curve):
    scheduler = ProfileLR(sgd(1.0), Linear(), total_steps=100, min_ratio=0.1)
    advance(scheduler, 20)
    top = scheduler.get_last_lr()[0]
    scheduler.cooldown(10, curve)
    y = [min(step / 10, 1.0) for step in range(13)]
    left = [1 - (math.sqrt(x) if curve == "1-sqrt" else x) for x in y]
    assert first_rates(scheduler, 13) == pytest.approx([0.1 + (top - 0.1) * share for share in left])


def test_a_cooldown_needs_no_length_survives_a_resume_and_jumps():
    def make():
        return ProfileLR(sgd(1.0, 0.1), REX(), warmup_steps=5)

    first, second = make(), make()
    advance(first, 3)
    first.cooldown(10)
    expected = advance(first, 4)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert advance(second, 10) == advance(first, 10)
    second.jump(3)
    assert advance(second, 4) == expected
    second.jump(1)
    assert second.get_last_lr() == pytest.approx([0.4, 0.04])


def test_a_second_cooldown_and_one_of_no_length_are_refused():
    scheduler = ProfileLR(sgd(1.0), WSD())
    for wrong in (0, -3, math.nan):
        with pytest.raises(ValueError, match=r"`ProfileLR.cooldown\(steps=...\)` must be a number above 0"):
            scheduler.cooldown(wrong)
    with pytest.raises(ValueError, match=r"`ProfileLR.cooldown\(curve=...\)` must be one of"):
        scheduler.cooldown(3, "steep")
    scheduler.cooldown(10)
    with pytest.raises(ValueError, match="has been coming down since 0 steps, and is down at 10"):
        scheduler.cooldown(10)


def test_numbers_of_numpy_will_do_and_are_plain_in_a_checkpoint(tmp_path):
    numbers = {"total_steps": np.int64(20), "warmup_steps": np.float32(2), "min_ratio": np.float64(0.1)}
    scheduler = ProfileLR(sgd(1.0), WSD(np.float64(0.5)), **numbers, unit="tokens")
    scheduler.increment = np.int64(1)
    scheduler.jump(np.int64(5))
    scheduler.cooldown(np.float32(4))
    torch.save(scheduler.state_dict(), tmp_path / "state.pt")
    assert torch.load(tmp_path / "state.pt", weights_only=True) == scheduler.state_dict()
    plain = ProfileLR(sgd(1.0), WSD(0.5), total_steps=20, warmup_steps=2, min_ratio=0.1, unit="tokens")
    plain.jump(5)
    plain.cooldown(4)
    assert advance(plain, 6) == advance(scheduler, 6)


def test_large_numbers_are_told_apart():
    scheduler, other = ProfileLR(sgd(1.0), total_steps=1_234_567), ProfileLR(sgd(1.0), total_steps=1_234_568)
    with pytest.warns(UserWarning, match="was given, 1234568, where its checkpoint has 1234567"):
        other.load_state_dict(scheduler.state_dict())
    with pytest.warns(UserWarning, match="warms up for 2000001 steps .* with `total_steps` set to 2000000"):
        ProfileLR(sgd(1.0), total_steps=2_000_000, warmup_steps=2_000_001)


@pytest.mark.parametrize("wrong", [0, -1, 2.5, math.nan, math.inf, "9", True])
def test_a_length_that_is_none_is_refused_with_what_to_set(wrong):
    said = r"`ProfileLR\(total_steps=...\)` must be a whole number of steps above 0, got .*set `Trainer\(max_steps"
    with pytest.raises(ValueError, match=said):
        ProfileLR(sgd(1.0), total_steps=wrong)
    scheduler = ProfileLR(adamw(1.0))
    with pytest.raises(ValueError, match=said):
        scheduler.total_steps = wrong
