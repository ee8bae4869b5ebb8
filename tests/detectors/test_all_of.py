# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.detectors import Above, AllOf, MedianDeviation, Ratio, Verdict


def test_all_must_agree_and_the_mildest_speaks():
    detector = AllOf([Above(2.0), Above(10.0)])
    assert detector.update(1.0) == Verdict(is_anomaly=False, score=0.0, threshold=2.0)
    assert detector.update(5.0) == Verdict(is_anomaly=False, score=0.0, threshold=10.0)
    assert detector.update(15.0) == Verdict(is_anomaly=True, score=0.5, threshold=10.0)


def test_each_remembers_a_value_as_what_it_is_to_that_one():
    strict, lenient = MedianDeviation(warmup=2, min_rise=0.5), Ratio(ratio=10.0)
    detector = AllOf([strict, lenient])
    for value in (1.0, 1.0, 1.0, 5.0):
        assert not detector.update(value).is_anomaly
    assert strict.state_dict()["values"] == [1.0] * 3
    assert lenient.state_dict()["values"] == [1.0] * 3 + [5.0]


def test_an_empty_list_is_refused():
    with pytest.raises(ValueError, match=r"`AllOf\(detectors=...\)` must be at least one detector, got \[\]"):
        AllOf([])
