# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from lightning_stable.schedules.curve import Curve

TOTAL = 100


def sampled(curve, total=TOTAL):
    return [curve.factor(position, 1, total) for position in range(total + 3)]


def test_fifty_seventy_five_takes_three_values():
    """Chen et al.'s sampling "50-75": the profile is looked at when the run is half and three quarters done."""
    factors = sampled(Curve("Linear", sample_at=[0.5, 0.75]))
    assert factors == [1.0] * 50 + [0.5] * 25 + [0.25] * 28


def test_thirty_three_sixty_six_takes_three_values():
    factors = sampled(Curve("Linear", sample_at=[0.33, 0.66]))
    assert factors == pytest.approx([1.0] * 33 + [0.67] * 33 + [0.34] * 37)


def test_every_ten_steps_takes_a_new_value():
    factors = sampled(Curve("Linear", sample_every=10))
    assert factors == pytest.approx([1 - step // 10 / 10 for step in range(100)] + [0] * 3)


def test_sampling_begins_when_the_warmup_ends():
    factors = sampled(Curve("Linear", warmup_steps=20, sample_at=[0.5]))
    assert factors[:20] == pytest.approx([(step + 1) / 20 for step in range(20)])
    assert factors[20:] == [1.0] * 40 + [0.5] * 43


def test_a_large_step_sees_the_end_of_the_warmup_only_if_it_gets_there():
    curve = Curve("Linear", warmup_steps=1000, unit="tokens")
    assert curve.factor(0, 100, 5000) == pytest.approx(0.1)
    assert curve.factor(900, 100, 5000) == 1.0
    assert curve.factor(950, 100, 5000) == 1.0


def test_it_says_all_that_decides_the_rate():
    said = repr(Curve("Cosine", warmup_steps=3, sample_at=[0.5]))
    assert said == (
        "ProfileLR(Cosine(), warmup_steps=3.0, warmup='linear', warmup_start=None, min_ratio=0.0, sample_every=None, "
        "sample_at=(0.5,), unit='steps')"
    )


@pytest.mark.parametrize("warmup", ["linear", "cosine", "exponential"])
def test_a_warmup_comes_up_to_where_the_profile_starts(warmup):
    """One cycle starts at 0.04 of the base rate: the step after the warmup is no cliff."""
    factors = sampled(Curve("OneCycle", warmup_steps=20, warmup=warmup, warmup_start=0.5))
    assert factors[:20] == sorted(factors[:20])
    assert factors[19] == factors[20] == 0.04
    assert factors[21] == pytest.approx(0.04, rel=0.2)


def test_the_least_rate_is_the_profile_s_and_no_floor_under_the_warmup():
    factors = sampled(Curve("Linear", warmup_steps=50, min_ratio=0.2))
    assert factors[:50] == pytest.approx([(step + 1) / 50 for step in range(50)])
    assert factors[50:100] == pytest.approx([0.2 + 0.8 * (1 - step / 50) for step in range(50)])
    assert factors[100:] == [0.2] * 3
    untuned = Curve("Linear", warmup="untuned_linear", min_ratio=0.2)
    assert untuned.factor(0, 1, 10**6, beta2=0.999) == pytest.approx(0.0005)


@pytest.mark.parametrize("profile", ["Linear", "Cosine", "REX", "WSD", "Step"])
def test_a_warmup_as_long_as_the_run_ends_at_the_base_rate(profile):
    curve = Curve(profile, warmup_steps=4)
    assert [curve.factor(position, 1, 4) for position in range(4)] == [0.25, 0.5, 0.75, 1.0]
    assert curve.factor(4, 1, 4) < 0.02


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"warmup_steps": 0.1}, r"`ProfileLR\(warmup_steps=...\)` must be 0, or at least 1 where steps .*, got 0.1"),
        ({"warmup_steps": -1}, r"`ProfileLR\(warmup_steps=...\)` must be a number of at least 0, got -1"),
        ({"warmup_steps": math.nan}, "warmup_steps"),
        ({"warmup_steps": "5"}, "warmup_steps"),
        ({"warmup": "steep"}, r"`ProfileLR\(warmup=...\)` must be one of 'linear', .*, got 'steep'"),
        ({"warmup_start": 1.0}, r"`ProfileLR\(warmup_start=...\)` must be a number in \[0, 1\), got 1.0"),
        ({"warmup_start": 0.0, "warmup": "exponential"}, r"must be a number in \(0, 1\), got 0.0"),
        ({"min_ratio": 1.5}, r"`ProfileLR\(min_ratio=...\)` must be a number in \[0, 1\], got 1.5"),
        ({"min_ratio": math.nan}, "min_ratio"),
        ({"sample_every": 0}, r"`ProfileLR\(sample_every=...\)` must be a number above 0, got 0"),
        ({"sample_at": [0.5, 0.4]}, r"`ProfileLR\(sample_at=...\)` must be fractions of the run"),
        ({"sample_every": 2, "sample_at": [0.5]}, "exclude each other"),
        ({"unit": "hours"}, r"`ProfileLR\(unit=...\)` must be one of 'steps', .*, got 'hours'"),
    ],
    ids=str,
)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        Curve(**arguments)
