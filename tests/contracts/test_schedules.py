# SPDX-License-Identifier: Apache-2.0
"""What every learning-rate schedule owes, asked of each profile the room exports."""

import copy
import inspect
import pickle
import random
from collections.abc import Callable

import jsonargparse
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as some
from lightning.pytorch.cli import instantiate_class
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import lightning_stable.schedules as room
from lightning_stable.schedules import Profile, ProfileLR
from tests.schedules.steps import adamw, advance

STEPS = 20
PROFILES = [
    member
    for _, member in inspect.getmembers(room, inspect.isclass)
    if issubclass(member, Profile) and not inspect.isabstract(member)
]
# At 0, a quarter, a half, three quarters and the end of a run without warmup.
VALUES = {
    "Cosine": [1.0, 0.8535533906, 0.5, 0.1464466094, 0.0],
    "Exponential": [1.0, 0.3162277660, 0.1, 0.0316227766, 0.01],
    "InverseSqrt": [1.0, 0.9759000729, 0.9534625892, 0.9325048082, 0.9128709292],  # of 2,000 steps
    "Linear": [1.0, 0.75, 0.5, 0.25, 0.0],
    "OneCycle": [0.04, 0.9356921938, 0.8117456540, 0.2830609982, 0.000004],
    "Polynomial": [1.0, 0.5625, 0.25, 0.0625, 0.0],
    "REX": [1.0, 6 / 7, 2 / 3, 2 / 5, 0.0],
    "Refined": [1.0, 0.75, 0.5, 0.25, 0.0],
    "Step": [1.0, 1.0, 0.1, 0.01, 0.01],
    "WSD": [1.0, 1.0, 1.0, 1.0, 0.0],
}
CURVES = {  # besides the profile
    "plain": {},
    "warmup": {"warmup_steps": 6},
    "cosine warmup": {"warmup_steps": 5, "warmup": "cosine", "warmup_start": 0.2},
    "exponential warmup": {"warmup_steps": 5, "warmup": "exponential"},
    "untuned line": {"warmup": "untuned_linear"},
    "untuned": {"warmup": "untuned_exponential"},
    "radam": {"warmup": "radam"},
    "every third": {"sample_every": 3, "warmup_steps": 2},
    "50-75": {"sample_at": [0.5, 0.75], "min_ratio": 0.1},
    "tokens": {"unit": "tokens", "warmup_steps": 4},
}


@pytest.fixture(params=PROFILES, ids=lambda member: member.__name__)
def profile(request):
    return request.param


@pytest.fixture(params=CURVES)
def curve(request):
    return CURVES[request.param]


def schedule(profile, *rates, **arguments):
    return ProfileLR(adamw(*(rates or (0.1, 0.3)), beta2=0.8), profile(), **{"total_steps": STEPS, **arguments})


def resumed(scheduler, profile, path=None, **arguments):
    """A new scheduler in the place of another."""
    states = (scheduler.state_dict(), scheduler.optimizer.state_dict())
    if path is not None:
        torch.save(states, path)
        states = torch.load(path, weights_only=True)
    twin = schedule(profile, **arguments)
    twin.load_state_dict(copy.deepcopy(states[0]))
    twin.optimizer.load_state_dict(copy.deepcopy(states[1]))
    return twin


def test_the_table_of_values_names_every_profile():
    assert VALUES.keys() == {profile.__name__ for profile in PROFILES}


@pytest.mark.parametrize("warmup_steps", [0, 500])
def test_its_values_at_the_quarters_of_the_run_are_those_of_the_table_in_every_group(profile, warmup_steps):
    scheduler = schedule(profile, 1.0, 0.02, total_steps=2000 + warmup_steps, warmup_steps=warmup_steps)
    for quarter, value in enumerate(VALUES[profile.__name__]):
        scheduler.jump(warmup_steps + quarter * 500)
        assert scheduler.get_last_lr() == pytest.approx([value, 0.02 * value], abs=1e-9)
    start = VALUES[profile.__name__][0]
    for share in (0.25, 0.5, 0.75) if warmup_steps else ():
        scheduler.jump(share * warmup_steps - 1)
        assert scheduler.get_last_lr() == pytest.approx([share * start, 0.02 * share * start])


def test_rates_are_finite_positive_and_at_most_the_base_rate_all_along_the_run(profile, curve):
    rates = torch.tensor(advance(schedule(profile, **curve), STEPS), dtype=torch.float64)
    assert (rates > 0).all()
    assert (rates <= torch.tensor([0.1, 0.3], dtype=torch.float64)).all()


def test_the_first_step_does_not_run_at_next_to_nothing(profile, curve):
    first, _ = advance(schedule(profile, **{"total_steps": 1000, **curve}), 1)[0]
    assert first > 0.1 * 0.001


def test_resume_equals_an_uninterrupted_run(profile, curve, tmp_path):
    expected = advance(schedule(profile, **curve), STEPS)
    first = schedule(profile, **curve)
    advance(first, 9)
    second = resumed(first, profile, tmp_path / "state.pt", **curve)
    assert second.state_dict() == first.state_dict()
    assert advance(second, STEPS - 9) == expected[9:]


@settings(max_examples=300, deadline=None, database=None, derandomize=True)
@given(data=some.data())
def test_interrupted_is_uninterrupted_at_every_step_whatever_the_curve(data):
    """Saved and loaded, rolled back, jumped to: the rates of every later step are those of an undisturbed run."""
    profile = data.draw(some.sampled_from(PROFILES))
    arguments = data.draw(some.sampled_from(list(CURVES.values())))
    steps = data.draw(some.integers(1, 40))
    increments = data.draw(some.lists(some.sampled_from([1, 1, 1, 2, 5]), min_size=steps, max_size=steps))
    arguments = {**arguments, "total_steps": data.draw(some.integers(11, 50))}
    cooldown_at = data.draw(some.none() | some.integers(0, steps))
    place = data.draw(some.integers(0, steps - 1))

    def run(scheduler, first, last):
        rates = []
        for step in range(first, last):
            if step == cooldown_at:
                scheduler.cooldown(7)
            scheduler.increment = increments[step]
            rates += advance(scheduler, 1)
        return rates

    straight = schedule(profile, **arguments)
    before, after = run(straight, 0, place), run(straight, place, steps)
    first = schedule(profile, **arguments)
    assert run(first, 0, place) == before
    saved = copy.deepcopy((first.state_dict(), first.optimizer.state_dict()))
    assert run(resumed(first, profile, **arguments), place, steps) == after
    run(first, place, steps)
    first.load_state_dict(saved[0])  # a rollback
    first.optimizer.load_state_dict(saved[1])
    first.jump(first.position)  # to where it is: nothing may change
    assert run(first, place, steps) == after


def test_going_back_in_mid_run_repeats_the_same_rates(profile):
    scheduler = schedule(profile)
    advance(scheduler, 5)
    state, optimizer_state = copy.deepcopy((scheduler.state_dict(), scheduler.optimizer.state_dict()))
    once = advance(scheduler, 10)
    scheduler.load_state_dict(state)
    scheduler.optimizer.load_state_dict(optimizer_state)
    assert advance(scheduler, 10) == once


def test_groups_keep_the_ratio_of_their_rates(profile, curve):
    rates = torch.tensor(advance(schedule(profile, **curve), STEPS), dtype=torch.float64)
    torch.testing.assert_close(rates[:, 1], 3 * rates[:, 0])


def test_a_rate_that_somebody_scaled_does_not_drift(profile):
    plain, disturbed = schedule(profile), schedule(profile)
    for _ in range(STEPS):
        disturbed.optimizer.param_groups[0]["lr"] *= 0.5
        advance(disturbed, 1)
        advance(plain, 1)
        assert disturbed.get_last_lr() == plain.get_last_lr()


def test_it_pickles_in_mid_run(profile, curve):
    scheduler = schedule(profile, **curve)
    advance(scheduler, 5)
    twin = pickle.loads(pickle.dumps(scheduler))
    assert advance(twin, 10) == advance(scheduler, 10)
    assert repr(pickle.loads(pickle.dumps(profile()))) == repr(profile())


def test_it_uses_no_global_randomness(profile):
    python, torch_state = random.getstate(), torch.get_rng_state()
    advance(schedule(profile), STEPS)
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_it_constructs_from_yaml(profile):
    path = "lightning_stable.schedules.ProfileLR"
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--callable", type=Callable[[Optimizer], LRScheduler])
    parser.add_subclass_arguments(LRScheduler, "subclass", skip={"optimizer"}, instantiate=False)
    config = parser.parse_args(
        [
            f"--callable={path}",
            f"--callable.total_steps={STEPS}",
            f"--callable.profile={profile.__name__}",
            f"--subclass={path}",
            f"--subclass.total_steps={STEPS}",
            f"--subclass.profile=lightning_stable.schedules.{profile.__name__}",
        ]
    )
    instantiate = (
        getattr(parser, "instantiate", None) or parser.instantiate_classes
    )  # the latter until jsonargparse 4.48
    made = instantiate(config)
    lightning_cli = instantiate_class(adamw(0.1), config.subclass.as_dict())
    for scheduler in (made.callable(adamw(0.1)), lightning_cli):
        assert repr(scheduler.curve) == repr(schedule(profile, 0.1).curve)
        assert advance(scheduler, STEPS) == advance(schedule(profile, 0.1), STEPS)
