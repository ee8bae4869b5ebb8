# SPDX-License-Identifier: Apache-2.0
import itertools
import math
import random
import statistics

import pytest

from lightning_stable.detectors import MedianDeviation


def reference_median_deviation(values, window, threshold, warmup, min_rise, min_ratio, delay):
    """The definition, one value at a time, slow and obvious."""
    accepted, verdicts = [], []
    for value in values:
        recent = accepted[: max(warmup, len(accepted) - delay)][-window:]
        if not math.isfinite(value):
            verdicts.append(True)
            continue
        if len(recent) < warmup:
            verdicts.append(False)
            accepted.append(value)
            continue
        median = statistics.median(recent)
        mad = statistics.median(abs(x - median) for x in recent)
        step = statistics.median(abs(x - before) for before, x in itertools.pairwise(recent))
        deviation = 1.4826 * min(mad, step / math.sqrt(2))
        rise = max(threshold * deviation, min_rise, (min_ratio - 1.0) * abs(median))
        verdicts.append(value > median + rise)
        if not verdicts[-1]:
            accepted.append(value)
    return verdicts, accepted[-window - delay :]


@pytest.mark.parametrize("seed", range(4))
@pytest.mark.parametrize(("min_rise", "min_ratio"), [(0.0, 1.0), (0.15, 1.0), (0.0, 3.0)])
def test_it_matches_its_definition(seed, min_rise, min_ratio):
    rng = random.Random(seed)
    values = [3.0 + 0.2 * rng.gauss(0, 1) + (5.0 if rng.random() < 0.05 else 0.0) for _ in range(400)]
    values[50] = float("nan")
    values[60] = float("-inf")
    detector = MedianDeviation(
        window=33, threshold=4.0, warmup=7, min_rise=min_rise, min_ratio=min_ratio, delay=5, rebaseline=None
    )
    verdicts = [detector.update(value).is_anomaly for value in values]
    expected, window = reference_median_deviation(values, 33, 4.0, 7, min_rise, min_ratio, 5)
    assert verdicts == expected
    assert detector.state_dict()["values"] == window
    assert any(verdicts)


def warmed(**arguments):
    rng = random.Random(0)
    detector = MedianDeviation(**arguments)
    for _ in range(200):
        detector.update(2.0 + 0.05 * rng.gauss(0, 1))
    return detector


def test_a_cluster_of_spikes_does_not_become_the_norm():
    detector = warmed(window=32, warmup=16, rebaseline=None)
    assert all(detector.update(6.0).is_anomaly for _ in range(200))
    assert not detector.update(2.0).is_anomaly


@pytest.mark.parametrize(("window", "spikes"), [(32, 16), (64, 16), (128, 32)])
def test_more_than_a_quarter_of_the_window_is_a_new_level(window, spikes):
    detector = warmed(window=window, warmup=8)
    rng = random.Random(1)
    alarms = [detector.update(6.0 + 0.05 * rng.gauss(0, 1)).is_anomaly for _ in range(40)]
    assert alarms == [True] * spikes + [False] * (40 - spikes)
    assert detector.update(6.0).score < 3.0  # judged by the new level from here on
    assert detector.update(12.0).is_anomaly


def test_spikes_are_counted_over_one_window_only():
    detector = warmed(window=64, warmup=8)
    for _ in range(8):  # one value in eight, forever
        assert [detector.update(value).is_anomaly for value in [2.0] * 7 + [6.0]] == [False] * 7 + [True]
    for _ in range(100):
        assert [detector.update(value).is_anomaly for value in [2.0] * 7 + [6.0]] == [False] * 7 + [True]


def test_with_a_delay_values_just_below_the_limit_do_not_lift_it():
    def alarms(delay):
        detector = warmed(window=32, warmup=16, threshold=8.0, delay=delay)
        rng = random.Random(1)
        rise = [2.0 + 0.01 * index + 0.05 * rng.gauss(0, 1) for index in range(60)]
        return [index for index, value in enumerate(rise) if detector.update(value).is_anomaly]

    assert alarms(delay=0) == []  # each takes the limit up a little for the next one
    assert alarms(delay=32)


def test_values_are_compared_with_what_is_older_than_the_delay():
    detector = MedianDeviation(window=4, warmup=2, delay=3, min_rise=0.5, rebaseline=None)
    for value in (1.0, 1.0, 5.0, 5.0, 5.0):
        detector.accept(value)
    assert detector.judge(1.6).is_anomaly
    assert not detector.judge(1.5).is_anomaly
    assert len(detector.state_dict()["values"]) == 5


def test_a_spike_in_a_steep_descent_is_seen():
    rng = random.Random(0)
    detector = MedianDeviation()
    for step in range(60):
        assert not detector.update(5.0 - 0.04 * step + 0.05 * rng.gauss(0, 1)).is_anomaly
    spike = 5.0 - 0.04 * 60 + 3.2  # less than 16 deviations that a MAD alone would see: it takes the fall for noise
    recent = [5.0 - 0.04 * step for step in range(44)]
    assert spike < statistics.median(recent) + 16 * 1.4826 * statistics.median(
        abs(x - statistics.median(recent)) for x in recent
    )
    assert detector.update(spike).is_anomaly


def test_a_fall_is_never_an_anomaly():
    detector = MedianDeviation(warmup=2)
    for value in (5.0, 5.0, 5.1):
        detector.update(value)
    assert not detector.update(-100.0).is_anomaly


def test_a_constant_stream_raises_no_alarm_and_a_floor_lets_noise_pass():
    detector = MedianDeviation(warmup=2, min_rise=0.1)
    assert not any(detector.update(1.0).is_anomaly for _ in range(300))
    assert not detector.update(1.09).is_anomaly
    assert detector.update(1.11).is_anomaly


def test_the_relative_floor_works_for_negative_signals():
    detector = MedianDeviation(warmup=2, min_ratio=2.0)
    for _ in range(10):
        detector.update(-3.0)
    assert not detector.update(-0.5).is_anomaly  # the limit is -3 + 1 * |-3| = 0
    assert detector.update(0.5).is_anomaly


def test_nothing_finite_is_an_anomaly_during_the_warmup():
    detector = MedianDeviation(window=8, warmup=8)
    assert not any(detector.update(10.0**power).is_anomaly for power in range(8))
    assert detector.update(float("nan")).is_anomaly


def test_the_verdict_tells_the_limit_in_the_signals_unit():
    detector = MedianDeviation(warmup=2, min_rise=0.5)
    for _ in range(5):
        detector.update(2.0)
    assert detector.judge(3.0).threshold == 2.5
    assert detector.judge(2.0).score == 0.0


def test_a_state_dict_in_the_middle_gives_the_same_verdicts():
    rng = random.Random(3)
    values = [rng.expovariate(1.0) for _ in range(300)]
    straight, before = MedianDeviation(window=20, warmup=5), MedianDeviation(window=20, warmup=5)
    expected = [straight.update(value) for value in values]
    for value in values[:150]:
        before.update(value)
    after = MedianDeviation(window=20, warmup=5)
    after.load_state_dict(before.state_dict())
    assert [after.update(value) for value in values[150:]] == expected[150:]


def test_a_shorter_window_takes_the_latest_values_of_a_longer_one():
    long, short = MedianDeviation(window=64, warmup=2), MedianDeviation(window=4, warmup=2, delay=0)
    for value in range(10):
        long.accept(float(value))
    short.load_state_dict(long.state_dict())
    assert short.state_dict()["values"] == [6.0, 7.0, 8.0, 9.0]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"window": -1}, r"`MedianDeviation\(window=...\)` must be at least 2, got -1"),
        ({"threshold": 0.0}, r"`MedianDeviation\(threshold=...\)` must be larger than 0, got 0.0"),
        ({"threshold": float("nan")}, "must be larger than 0, got nan"),
        ({"window": 8, "warmup": 9}, r"must be from 2 to window=8, got 9"),
        ({"min_rise": -0.1}, r"must be finite and at least 0, got -0.1"),
        ({"min_ratio": 0.5}, r"must be finite and at least 1, got 0.5"),
        ({"delay": -1}, r"`MedianDeviation\(delay=...\)` must be at least 0, got -1"),
        ({"rebaseline": 0.0}, r"`MedianDeviation\(rebaseline=...\)` must be above 0 and at most 1, or `None`, got 0.0"),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_its_bound(arguments, message):
    with pytest.raises(ValueError, match=message):
        MedianDeviation(**arguments)
