# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.detectors import NonFinite


@pytest.mark.parametrize(
    ("value", "expected"),
    [(float("nan"), True), (float("inf"), True), (float("-inf"), True), (1e308, False), (0.0, False)],
)
def test_only_nan_and_infinity_are_anomalies(value, expected):
    verdict = NonFinite().update(value)
    assert verdict.is_anomaly is expected
    assert verdict.score == (float("inf") if expected else 0.0)
