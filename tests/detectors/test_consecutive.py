# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from lightning_stable.detectors import Above, Consecutive, MedianDeviation


def alarms(detector, values):
    return [detector.update(value).is_anomaly for value in values]


def test_only_what_lasts_is_an_anomaly():
    values = [9.0, 1.0, 9.0, 9.0, 1.0, 9.0, 9.0, 9.0, 9.0, 1.0]
    assert alarms(Consecutive(Above(5.0), times=3), values) == [False] * 7 + [True, True, False]
    assert alarms(Consecutive(Above(5.0), times=1), values) == [value > 5.0 for value in values]


def test_what_is_not_finite_is_one_at_once_and_leaves_the_row_as_it_is():
    detector = Consecutive(Above(5.0), times=2)
    assert alarms(detector, [math.nan, 9.0, math.inf, 9.0, 1.0]) == [True, False, True, True, False]


def test_what_passes_because_it_is_short_is_not_remembered():
    inner = MedianDeviation(warmup=4, min_rise=1.0)
    detector = Consecutive(inner, times=3)
    for value in [2.0] * 10 + [50.0, 50.0]:
        detector.update(value)
    assert inner.state_dict()["values"] == [2.0] * 10


def test_a_row_of_none_is_refused():
    with pytest.raises(ValueError, match=r"`Consecutive\(times=...\)` must be at least 1, got 0"):
        Consecutive(times=0)
