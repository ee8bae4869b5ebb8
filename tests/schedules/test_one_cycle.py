# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.schedules import OneCycle, ProfileLR
from tests.schedules.steps import adamw, sgd

LENGTH = 40


def cycle(scheduler, read, steps=LENGTH + 1):
    found = []
    for _ in range(steps):
        group = scheduler.optimizer.param_groups[0]
        found.append((group["lr"], read(group)))
        scheduler.optimizer.step()
        if len(found) < steps:
            scheduler.step()
    return found


def torch_s(optimizer, peak, curve, three_phases):
    """torch counts to total_steps - 1 and has its corners at pct_start * total_steps - 1 and twice that."""
    return torch.optim.lr_scheduler.OneCycleLR(
        optimizer,
        max_lr=0.3,
        total_steps=LENGTH + 1,
        pct_start=(peak * LENGTH + 1) / (LENGTH + 1),
        anneal_strategy={"cosine": "cos", "linear": "linear"}[curve],
        three_phase=three_phases,
    )


@pytest.mark.parametrize("curve", ["cosine", "linear"])
@pytest.mark.parametrize(("peak", "three_phases"), [(0.3, False), (0.45, True)])
@pytest.mark.parametrize("kind", ["sgd", "adamw"])
def test_it_is_torch_s_cycle_of_rate_and_momentum(curve, peak, three_phases, kind):
    def read(group):
        return group["momentum"] if kind == "sgd" else group["betas"][0]

    def make():
        return sgd(0.3, momentum=0.9) if kind == "sgd" else adamw(0.3)

    ours = cycle(ProfileLR(make(), OneCycle(peak, curve=curve, three_phases=three_phases), LENGTH), read)
    theirs = cycle(torch_s(make(), peak, curve, three_phases), read)
    for (lr, momentum), (expected_lr, expected_momentum) in zip(ours, theirs, strict=True):
        assert lr == pytest.approx(expected_lr, rel=1e-9, abs=1e-9)
        assert momentum == pytest.approx(expected_momentum, rel=1e-12)


def test_momentum_is_lowest_where_the_rate_is_highest_in_every_group():
    scheduler = ProfileLR(sgd(1.0, 0.1, momentum=0.9), OneCycle(peak=0.5), 10)
    for _ in range(5):
        scheduler.optimizer.step()
        scheduler.step()
    assert [group["momentum"] for group in scheduler.optimizer.param_groups] == pytest.approx([0.85, 0.85])
    assert scheduler.get_last_lr() == pytest.approx([1.0, 0.1])


def test_beta2_is_left_alone_and_so_is_an_optimizer_without_momentum():
    scheduler = ProfileLR(adamw(1.0, beta2=0.98), OneCycle(), 10)
    assert scheduler.optimizer.param_groups[0]["betas"] == (pytest.approx(0.95), 0.98)
    plain = ProfileLR(sgd(1.0), OneCycle(), 10)
    assert plain.optimizer.param_groups[0]["momentum"] == 0.0
    kept = ProfileLR(adamw(1.0), OneCycle(momentum_range=None), 10)
    assert kept.optimizer.param_groups[0]["betas"] == (0.9, 0.999)


def momenta(scheduler, steps):
    return [momentum for _, momentum in cycle(scheduler, lambda group: group["momentum"], steps)]


def test_a_momentum_that_comes_down_to_0_goes_up_again_also_after_a_resume():
    def make():
        return ProfileLR(sgd(1.0, momentum=0.9), OneCycle(0.5, curve="linear", momentum_range=(0.0, 0.9)), 8)

    expected = [0.9 * abs(4 - step) / 4 for step in range(9)]
    straight, first, second = make(), make(), make()
    assert momenta(straight, 9) == pytest.approx(expected)
    straight.jump(0)
    assert straight.optimizer.param_groups[0]["momentum"] == 0.9
    momenta(first, 5)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert momenta(second, 5) == pytest.approx(expected[4:])


def test_a_group_added_later_follows_if_it_has_momentum():
    scheduler = ProfileLR(sgd(1.0, momentum=0.9), OneCycle(0.5, momentum_range=(0.0, 0.9)), 8)
    scheduler.jump(4)
    for momentum in (0.5, 0.0):
        weight = torch.nn.Parameter(torch.zeros(1))
        scheduler.optimizer.add_param_group({"params": [weight], "lr": 0.1, "momentum": momentum})
    scheduler.jump(0)
    assert [group["momentum"] for group in scheduler.optimizer.param_groups] == [0.9, 0.9, 0.0]


def test_betas_that_are_tensors_stay_the_same_tensors():
    betas = torch.tensor(0.9), torch.tensor(0.999)
    weight = torch.nn.Parameter(torch.zeros(1))
    optimizer = torch.optim.Adam([weight], lr=torch.tensor(0.1), betas=betas, capturable=True)
    scheduler = ProfileLR(optimizer, OneCycle(), 10)
    assert optimizer.param_groups[0]["betas"][0] is betas[0]
    assert betas[0].item() == pytest.approx(0.95)
    scheduler.jump(3)
    assert optimizer.param_groups[0]["betas"][0] is betas[0]
    assert betas[0].item() == pytest.approx(0.85)


def test_when_a_cooldown_is_over_momentum_stays_where_the_cycle_has_it():
    scheduler = ProfileLR(sgd(1.0, momentum=0.9), OneCycle(0.5), 10)
    scheduler.jump(5)
    scheduler.cooldown(2)
    scheduler.jump(7)
    assert scheduler.get_last_lr() == [0.0]
    assert scheduler.optimizer.param_groups[0]["momentum"] == pytest.approx(
        0.85 + 0.1 * (1 - math.cos(0.4 * math.pi)) / 2
    )


def test_momentum_is_restored_with_the_optimizer():
    def make():
        return ProfileLR(adamw(1.0), OneCycle(), 10)

    straight, first, second = make(), make(), make()
    expected = cycle(straight, lambda group: group["betas"], 10)
    cycle(first, lambda group: group["betas"], 5)
    first.step()
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert cycle(second, lambda group: group["betas"], 5) == expected[5:]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"peak": 0.0}, r"`OneCycle\(peak=...\)` must be a number in \(0, 1\), got 0.0"),
        ({"peak": 0.6, "three_phases": True}, r"`OneCycle\(peak=...\)` must be a number in \(0, 0.5\), got 0.6"),
        ({"start_ratio": 0.0}, "start_ratio"),
        ({"end_ratio": math.nan}, "end_ratio"),
        ({"curve": "steep"}, r"`OneCycle\(curve=...\)` must be one of 'cosine', 'linear', got 'steep'"),
        ({"momentum_range": (0.95, 0.85)}, "momentum_range"),
        ({"momentum_range": (0.95,)}, "momentum_range"),
        ({"momentum_range": (0.5, 1.0)}, "momentum_range"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        OneCycle(**arguments)
