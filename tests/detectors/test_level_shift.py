# SPDX-License-Identifier: Apache-2.0
import math
import random
import statistics

import pytest

from lightning_stable.detectors import LevelShift


def reference(values, block, blocks, min_rise, threshold, release):
    """The definition, over all blocks from the start, slow and obvious."""
    finite = [value for value in values if math.isfinite(value)]
    means = [statistics.fmean(finite[i : i + block]) for i in range(0, len(finite) - block + 1, block)]
    best, spread, latched, alarms = math.inf, 0.0, False, []
    for end in range(blocks, len(means) + 1):
        last = means[end - blocks : end]
        level = statistics.fmean(last)
        rise = max(min_rise, threshold * spread)
        if best < math.inf and not latched and level > best + rise:
            alarms.append(end * block - 1)
            latched = True
        elif level <= best + release * rise:
            latched = False
        if level < best:
            best, spread = level, statistics.stdev(last)
    return alarms


def drifting(seed, length=6000):
    rng = random.Random(seed)
    level = [3.0 - 0.0005 * min(step, 2000) + 0.0004 * max(0, min(step - 3000, 1000)) for step in range(length)]
    level = [value - 0.0008 * max(0, min(step - 4500, 600)) for step, value in enumerate(level)]
    return [value + 0.05 * rng.gauss(0, 1) for value in level]


@pytest.mark.parametrize("seed", range(3))
@pytest.mark.parametrize("threshold", [0.0, 4.0])
def test_it_matches_its_definition(seed, threshold):
    values = drifting(seed) + drifting(seed + 10)
    settings = {"block": 20, "blocks": 8, "min_rise": 0.08, "threshold": threshold, "release": 0.5}
    detector = LevelShift(**settings)
    alarms = [index for index, value in enumerate(values) if detector.update(value).is_anomaly]
    assert alarms == reference(values, **settings)
    assert len(alarms) >= 2  # a rise, and after it was over another one


def test_a_slow_divergence_is_one_alarm():
    rng = random.Random(0)
    detector = LevelShift()
    values = [2.0 + 0.1 * rng.gauss(0, 1) + 5e-5 * max(0, step - 8000) for step in range(20000)]
    alarms = [step for step, value in enumerate(values) if detector.update(value).is_anomaly]
    assert len(alarms) == 1
    assert 10000 < alarms[0] < 12000


def test_a_spike_that_recovers_is_none():
    rng = random.Random(1)
    detector = LevelShift()
    values = [2.0 + 0.1 * rng.gauss(0, 1) + (5.0 if step == 5000 else 0.0) for step in range(10000)]
    assert not any(detector.update(value).is_anomaly for value in values)


def test_the_threshold_is_the_largest_value_that_passes():
    detector = LevelShift(block=4, blocks=2, min_rise=0.1, threshold=0.0)
    for value in [1.0] * 11:
        detector.update(value)
    threshold = detector.judge(1.0).threshold
    assert threshold == pytest.approx(1.8)  # so that the mean of 2 blocks of 4 is 1.1
    assert not detector.judge(threshold - 1e-9).is_anomaly
    assert detector.judge(threshold + 1e-9).is_anomaly


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"block": 0}, r"`LevelShift\(block=...\)` must be at least 1, got 0"),
        ({"blocks": 1}, r"`LevelShift\(blocks=...\)` must be at least 2, got 1"),
        ({"min_rise": -0.1}, r"`LevelShift\(min_rise=...\)` must be finite and at least 0, got -0.1"),
        ({"threshold": -1.0}, r"`LevelShift\(threshold=...\)` must be at least 0, got -1.0"),
        ({"release": 1.0}, r"`LevelShift\(release=...\)` must be at least 0 and less than 1, got 1.0"),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_its_bound(arguments, message):
    with pytest.raises(ValueError, match=message):
        LevelShift(**arguments)
