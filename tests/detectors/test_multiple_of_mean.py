# SPDX-License-Identifier: Apache-2.0
import math
import random
import statistics

import pytest

from lightning_stable.detectors import MultipleOfMean


def test_it_matches_its_definition():
    rng = random.Random(0)
    values, burst = [], 0
    for _ in range(600):
        burst = max(0, burst - 1) or (rng.randint(1, 8) if rng.random() < 0.03 else 0)
        values.append(3.0 + rng.gauss(0, 0.2) + (6.0 if burst else 0.0))
    accepted, row, expected = [], 0, []
    for value in values:
        recent = accepted[-30:]
        large = len(recent) >= 10 and value > 2.0 * statistics.fmean(recent)
        row = row + 1 if large else 0
        expected.append(row > 3)
        if not large:
            accepted.append(value)
    detector = MultipleOfMean(window=30, multiple=2.0, patience=3, warmup=10, rebaseline=None)
    assert [detector.update(value).is_anomaly for value in values] == expected
    assert any(expected)


def test_a_detonation_is_noticed_four_steps_late_and_a_short_spike_is_not():
    detector = MultipleOfMean()
    for _ in range(100):
        detector.update(2.0)
    assert not any(detector.update(value).is_anomaly for value in (11.0, 11.0, 11.0, 11.0, 2.0))
    assert [detector.update(11.0).is_anomaly for _ in range(6)] == [False] * 4 + [True] * 2
    assert detector.update(math.nan).is_anomaly


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 0}, r"`MultipleOfMean\(window=...\)` must be at least 1, got 0"),
        ({"multiple": 1.0}, r"`MultipleOfMean\(multiple=...\)` must be finite and larger than 1, got 1.0"),
        ({"patience": -1}, r"`MultipleOfMean\(patience=...\)` must be at least 0, got -1"),
        ({"warmup": 0}, r"`MultipleOfMean\(warmup=...\)` must be from 1 to window=100, got 0"),
        ({"rebaseline": 2.0}, r"`MultipleOfMean\(rebaseline=...\)` must be above 0 and at most 1, or `None`, got 2.0"),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_its_bound(arguments, message):
    with pytest.raises(ValueError, match=message):
        MultipleOfMean(**arguments)
