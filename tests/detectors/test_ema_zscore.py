# SPDX-License-Identifier: Apache-2.0
import math
import random
import statistics

import pytest

from lightning_stable.detectors import EMAZScore


def reference(values, alpha, threshold, warmup, min_rise):
    """The definition, one value at a time, slow and obvious."""
    first, verdicts = [], []
    mean = variance = math.nan
    for value in values:
        if not math.isfinite(value):
            verdicts.append(True)
            continue
        if len(first) < warmup:
            first.append(value)
            if len(first) == warmup:
                mean = statistics.median(first)
                variance = (1.4826 * statistics.median(abs(x - mean) for x in first)) ** 2
            verdicts.append(False)
            continue
        verdicts.append(value > mean + max(threshold * variance**0.5, min_rise))
        if not verdicts[-1]:
            variance = alpha * variance + (1 - alpha) * (value - mean) ** 2
            mean = alpha * mean + (1 - alpha) * value
    return verdicts, mean, variance


@pytest.mark.parametrize("min_rise", [0.0, 1.0])
@pytest.mark.parametrize("alpha", [0.0, 0.9, 0.99])
def test_it_matches_its_definition(alpha, min_rise):
    rng = random.Random(0)
    values = [3.0 + 0.2 * rng.gauss(0, 1) + (5.0 * rng.random() if rng.random() < 0.05 else 0.0) for _ in range(400)]
    values[7] = values[60] = math.nan
    detector = EMAZScore(alpha=alpha, threshold=4.0, warmup=12, min_rise=min_rise, rebaseline=None)
    expected, mean, variance = reference(values, alpha, 4.0, 12, min_rise)
    assert [detector.update(value).is_anomaly for value in values] == expected
    assert any(expected)
    state = detector.state_dict()
    assert (state["mean"], state["variance"]) == pytest.approx((mean, variance), rel=1e-12)


def test_a_spike_in_the_warmup_hides_no_later_one():
    rng = random.Random(1)
    detector = EMAZScore()
    detector.update(1000.0)
    for _ in range(100):
        detector.update(2.0 + 0.1 * rng.gauss(0, 1))
    assert detector.update(4.0).is_anomaly


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"alpha": 1.0}, r"`EMAZScore\(alpha=...\)` must be at least 0 and less than 1, got 1.0"),
        ({"threshold": 0.0}, r"`EMAZScore\(threshold=...\)` must be larger than 0, got 0.0"),
        ({"warmup": 1}, r"`EMAZScore\(warmup=...\)` must be at least 2, got 1"),
        ({"min_rise": -1.0}, r"`EMAZScore\(min_rise=...\)` must be finite and at least 0, got -1.0"),
        ({"rebaseline": -0.5}, r"`EMAZScore\(rebaseline=...\)` must be above 0 and at most 1, or `None`, got -0.5"),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_its_bound(arguments, message):
    with pytest.raises(ValueError, match=message):
        EMAZScore(**arguments)
