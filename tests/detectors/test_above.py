# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from lightning_stable.detectors import Above


def test_the_limit_itself_is_healthy():
    detector = Above(2.0)
    assert not detector.update(2.0).is_anomaly
    assert not detector.update(1.0).is_anomaly
    assert detector.update(3.0).is_anomaly
    assert detector.update(3.0).score == 0.5
    assert detector.update(math.nan).is_anomaly


def test_a_limit_of_zero_and_a_negative_one():
    sign = 1.0 if 3 > 2 else -1.0
    assert Above(0.0).update(sign * 1e-9).score == math.inf
    assert Above(0.0).update(0.0).score == 0.0
    assert Above(-2.0).update(-2.0 + sign).score == 0.5


def test_a_limit_that_is_not_finite_is_refused():
    with pytest.raises(ValueError, match=r"`Above\(limit=...\)` must be finite, got nan"):
        Above(math.nan)
