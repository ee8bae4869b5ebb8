# SPDX-License-Identifier: Apache-2.0
import random

import pytest

from lightning_stable.detectors import Above, AnyOf, Below, MedianDeviation, Verdict


def test_one_is_enough_and_its_verdict_is_the_verdict():
    detector = AnyOf([Above(10.0), Below(2.0)])
    assert detector.update(5.0) == Verdict(is_anomaly=False, score=0.0, threshold=10.0)
    assert detector.update(15.0) == Verdict(is_anomaly=True, score=0.5, threshold=10.0)
    assert detector.update(1.0) == Verdict(is_anomaly=True, score=0.5, threshold=2.0)


def test_who_calls_it_an_anomaly_speaks_before_who_has_a_higher_score():
    wide, narrow = MedianDeviation(warmup=2, min_rise=100.0), Above(3.0)
    detector = AnyOf([wide, narrow])
    for value in (1.0, 1.1, 0.9, 1.0):
        detector.update(value)
    assert wide.judge(3.5).score > narrow.judge(3.5).score
    assert detector.judge(3.5) == narrow.judge(3.5)


def test_an_anomaly_to_one_is_remembered_by_none():
    history = MedianDeviation(warmup=2, min_rise=100.0)
    detector = AnyOf([Above(3.0), history])
    for value in (1.0, 1.0, 50.0, 1.0):
        detector.update(value)
    assert history.state_dict()["values"] == [1.0, 1.0, 1.0]


def test_by_default_it_sees_spikes_and_slow_divergence():
    rng = random.Random(0)
    detector = AnyOf()
    alarms = [
        step
        for step in range(12000)
        if detector.update(
            3.0 + 0.02 * rng.gauss(0, 1) + 1e-4 * max(0, step - 6000) + (5.0 if step == 5000 else 0.0)
        ).is_anomaly
    ]
    assert alarms[0] == 5000
    assert len(alarms) == 2
    assert 7000 < alarms[1] < 9000


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match=r"`AnyOf\(detectors=...\)` must be at least one detector, got \[\]"):
        AnyOf([])
