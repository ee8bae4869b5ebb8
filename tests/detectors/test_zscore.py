# SPDX-License-Identifier: Apache-2.0
import math
import random
import statistics

import pytest

from lightning_stable.detectors import ZScore


def reference(values, window, threshold, warmup, min_rise):
    """The definition, one value at a time, slow and obvious."""
    accepted, verdicts = [], []
    for value in values:
        recent = accepted[-window:]
        if not math.isfinite(value):
            verdicts.append((True, math.inf))
            continue
        if len(recent) < warmup:
            verdicts.append((False, math.inf))
        else:
            limit = statistics.fmean(recent) + max(threshold * statistics.stdev(recent), min_rise)
            verdicts.append((value > limit, limit))
        if not verdicts[-1][0]:
            accepted.append(value)
    return verdicts


@pytest.mark.parametrize("min_rise", [0.0, 0.7])
def test_it_matches_its_definition(min_rise):
    rng = random.Random(0)
    values = [3.0 + 0.2 * rng.gauss(0, 1) + (5.0 * rng.random() if rng.random() < 0.05 else 0.0) for _ in range(400)]
    values[30] = math.nan
    detector = ZScore(window=33, threshold=3.0, warmup=7, min_rise=min_rise, rebaseline=None)
    expected = reference(values, 33, 3.0, 7, min_rise)
    assert sum(is_anomaly for is_anomaly, _ in expected) > 5
    for value, (is_anomaly, limit) in zip(values, expected, strict=True):
        verdict = detector.update(value)
        assert verdict.is_anomaly == is_anomaly
        if math.isfinite(value):
            assert verdict.threshold == pytest.approx(limit, rel=1e-12)


def test_the_score_counts_standard_deviations():
    detector = ZScore(window=4, warmup=2)
    for value in (1.0, 3.0):
        detector.accept(value)
    assert detector.judge(2.0 + 2.0 * math.sqrt(2.0)).score == pytest.approx(2.0)
    assert detector.judge(1.0).score == 0.0


def test_one_nan_does_not_have_the_next_healthy_steps_skipped():
    rng = random.Random(1)
    detector = ZScore()
    for _ in range(200):
        detector.update(2.0 + 0.1 * rng.gauss(0, 1))
    assert detector.update(math.nan).is_anomaly
    assert not any(detector.update(2.0 + 0.1 * rng.gauss(0, 1)).is_anomaly for _ in range(200))


def test_a_spike_in_the_warmup_hides_others_for_no_longer_than_the_window():
    rng = random.Random(2)
    detector = ZScore(window=32, warmup=16)
    detector.update(1000.0)
    for _ in range(32):
        detector.update(2.0 + 0.1 * rng.gauss(0, 1))
    assert detector.update(4.0).is_anomaly


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": 1}, r"`ZScore\(window=...\)` must be at least 2, got 1"),
        ({"threshold": -1.0}, r"`ZScore\(threshold=...\)` must be larger than 0, got -1.0"),
        ({"window": 8, "warmup": 9}, r"`ZScore\(warmup=...\)` must be from 2 to window=8, got 9"),
        ({"min_rise": math.inf}, r"`ZScore\(min_rise=...\)` must be finite and at least 0, got inf"),
        ({"rebaseline": 1.5}, r"`ZScore\(rebaseline=...\)` must be above 0 and at most 1, or `None`, got 1.5"),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_its_bound(arguments, message):
    with pytest.raises(ValueError, match=message):
        ZScore(**arguments)
