# SPDX-License-Identifier: Apache-2.0
from types import SimpleNamespace

import numpy as np
import pytest

from lightning_stable.detectors.scan import Scan, as_values, scan_in_leaps


class Odd:
    """Calls odd numbers anomalies."""

    def __init__(self):
        self.leaps, self.updates = [], []

    def leap(self, chunk, found, start):
        odd = chunk % 2 == 1
        healthy = int(odd.argmax()) if odd.any() else len(chunk)
        found.score[start : start + healthy] = chunk[:healthy]
        self.leaps.append(len(chunk))
        return healthy

    def update(self, value):
        self.updates.append(value)
        return SimpleNamespace(is_anomaly=True, score=1.0, threshold=0.0)


def test_leaps_grow_while_all_is_well_and_anomalies_are_judged_one_by_one():
    odd, values = Odd(), 2.0 * np.arange(20000)
    values[[0, 700, 701, 19999]] += 1
    found = scan_in_leaps(values, odd.leap, odd.update)
    assert found.alarms.tolist() == [0, 700, 701, 19999]
    assert odd.updates == values[[0, 700, 701, 19999]].tolist()
    assert np.array_equal(found.score[~found.is_anomaly], values[~found.is_anomaly])
    assert max(odd.leaps) == 4096
    assert len(odd.leaps) < 30


def test_an_unknown_verdict_is_none():
    scan = Scan.unknown(3)
    assert scan.alarms.tolist() == []
    assert scan.threshold.tolist() == [np.inf] * 3


def test_a_curve_has_one_axis():
    assert as_values([1, 2]).dtype == np.float64
    with pytest.raises(ValueError, match=r"`scan\(values=...\)` must have one axis, got 0"):
        as_values(np.array(1.0))
