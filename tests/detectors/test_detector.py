# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.detectors import MedianDeviation, Verdict


def test_update_is_judge_and_then_accept_or_reject():
    together, apart = MedianDeviation(warmup=2), MedianDeviation(warmup=2)
    for value in (1.0, 1.1, 0.9, 50.0, float("nan"), 1.0):
        expected = apart.judge(value)
        if expected.is_anomaly:
            apart.reject(value)
        else:
            apart.accept(value)
        assert together.update(value) == expected
    assert together.state_dict() == apart.state_dict()


def test_judging_remembers_nothing():
    detector = MedianDeviation(warmup=2)
    for value in (1.0, 1.1, 0.9):
        detector.accept(value)
    before = detector.state_dict()
    detector.judge(1.0)
    detector.judge(100.0)
    assert detector.state_dict() == before


def test_a_verdict_cannot_be_changed():
    verdict = Verdict(is_anomaly=False, score=0.0, threshold=1.0)
    with pytest.raises(AttributeError, match="cannot assign"):
        verdict.is_anomaly = True
