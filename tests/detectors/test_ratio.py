# SPDX-License-Identifier: Apache-2.0
import math
import random
import statistics

import pytest

from lightning_stable.detectors import Ratio


@pytest.mark.parametrize("center", [3.0, -3.0])
def test_it_matches_its_definition(center):
    rng = random.Random(0)
    values = [center + rng.gauss(0, 0.2) + (9.0 * rng.random() if rng.random() < 0.1 else 0.0) for _ in range(300)]
    accepted, expected = [], []
    for value in values:
        recent = accepted[-10:]
        mean = statistics.fmean(recent) if len(recent) >= 4 else math.inf
        expected.append(value > mean + max(1.0 * abs(mean), 0.5))
        if not expected[-1]:
            accepted.append(value)
    detector = Ratio(window=10, ratio=2.0, warmup=4, min_rise=0.5, rebaseline=None)
    assert [detector.update(value).is_anomaly for value in values] == expected
    assert any(expected)


def test_by_default_it_sees_an_explosion_and_nothing_less():
    detector = Ratio()
    for _ in range(20):
        detector.update(3.0)
    assert not detector.update(8.0).is_anomaly
    assert detector.update(12.0).is_anomaly


def test_the_first_value_after_a_spike_is_judged_like_any_other():
    detector = Ratio()
    detector.update(1.0)
    assert detector.update(1000.0).is_anomaly  # after a single value
    assert not detector.update(1.0).is_anomaly
    assert detector.update(900.0).is_anomaly


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, r"`Ratio\(window=...\)` must be at least 1, got 0"),
        ({"ratio": 1.0}, r"`Ratio\(ratio=...\)` must be finite and larger than 1, got 1.0"),
        ({"warmup": 11}, r"`Ratio\(warmup=...\)` must be from 1 to window=10, got 11"),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_its_bound(arguments, message):
    with pytest.raises(ValueError, match=message):
        Ratio(**arguments)
