# SPDX-License-Identifier: Apache-2.0
import random

import pytest

from lightning_stable.callbacks.population.settings import Settings

GOOD = {
    "population": 4,
    "interval": 10,
    "ranges": {"lr": [1e-3, 1.0]},
    "choices": {"momentum": [0.8, 0.9]},
    "initial": [{"lr": 0.5}],
    "monitor": "val_loss",
    "mode": "min",
    "fraction": 0.2,
    "seed": 3,
}
NAN = float("nan")


def settings(**changes):
    return Settings(**{**GOOD, **changes})


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"population": 1}, r"population=\.\.\.\)` must be a whole number of at least 2, got 1. One member"),
        ({"population": True}, "population"),
        ({"population": 2.5}, "population"),
        ({"interval": 0}, r"interval=\.\.\.\)` must be a whole number of at least 1, got 0"),
        ({"interval": NAN}, "interval"),
        ({"seed": -1}, "seed"),
        ({"mode": "best"}, '"min" or "max"'),
        ({"monitor": ""}, "monitor"),
        ({"fraction": 0.6}, "at most 0.5, got 0.6"),
        ({"fraction": 0.0}, "above 0"),
        ({"fraction": NAN}, "fraction"),
        ({"ranges": {"lr": [1.0]}}, "the smallest and the largest value"),
        ({"ranges": {"lr": [1.0, 0.1]}}, "the smallest and the largest value"),
        ({"ranges": {"eps": [0.1, NAN]}}, "the smallest and the largest value"),
        ({"ranges": {"eps": "ab"}}, "the smallest and the largest value"),
        ({"ranges": {"lr": [0.0, 0.1]}}, "above 0 for 'lr'"),
        ({"choices": {"momentum": [0.9]}}, "at least two"),
        ({"choices": {"momentum": [0.9, NAN]}}, "finite"),
        ({"choices": {"lr": [0.1, 0.2]}}, "in `search` and in `choices`"),
        ({"ranges": {}, "choices": {"lr": [-0.1, 0.2]}, "initial": []}, "above 0 for 'lr'"),
        ({"initial": [{}] * 5}, "at most 4"),
        ({"initial": [{"eps": 1.0}]}, "got 'eps'"),
        ({"initial": [{"lr": NAN}]}, "finite"),
    ],
)
def test_what_is_out_of_bounds_is_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        settings(**changes)


def test_every_decision_is_the_same_at_every_call_and_leaves_the_global_generator_alone():
    before = random.getstate()
    one, other = settings(), settings()
    assert [one.beginning(member) for member in range(4)] == [other.beginning(member) for member in (0, 1, 2, 3)]
    assert one.select([3.0, 1.0, 2.0, 4.0], 7) == other.select([3.0, 1.0, 2.0, 4.0], 7)
    values = {"lr": 0.1, "momentum": 0.9}
    assert one.explore(values, 1, 2) == other.explore(values, 1, 2)
    assert random.getstate() == before


def test_decisions_differ_with_seed_member_and_generation():
    begins = [settings(seed=seed).beginning(member)["lr"] for seed in range(3) for member in range(1, 4)]
    assert len(set(begins)) == 9
    values = {"lr": 0.03, "momentum": 0.9}
    assert len({settings().explore(values, generation, 0)["lr"] for generation in range(40)}) > 5


def test_the_first_members_begin_as_they_are_told():
    assert settings().beginning(0)["lr"] == 0.5
    assert settings().beginning(0)["momentum"] in (0.8, 0.9)
    beginning = settings(initial=[{"lr": 1, "momentum": 0.8}]).beginning(0)
    assert beginning == {"lr": 1.0, "momentum": 0.8}
    assert isinstance(beginning["lr"], float)
