# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.detectors import Above, AllOf, AnyOf, MedianDeviation


@pytest.mark.parametrize("kind", [AnyOf, AllOf])
def test_a_state_of_more_or_fewer_detectors_is_refused(kind):
    with pytest.raises(ValueError, match=f"this `{kind.__name__}` has 1 detectors, the state 2."):
        kind([Above()]).load_state_dict(kind([Above(), Above()]).state_dict())


def test_a_value_that_one_refused_is_told_to_that_one_only():
    strict, lenient = MedianDeviation(warmup=2, min_rise=0.5), MedianDeviation(warmup=2, min_rise=100.0)
    detector = AnyOf([strict, lenient])
    for value in (1.0, 1.0, 5.0):
        detector.update(value)
    assert strict.state_dict() == {"values": [1.0, 1.0], "rejected": {"ages": [0], "values": [5.0]}}
    assert lenient.state_dict() == {"values": [1.0, 1.0], "rejected": {"ages": [], "values": []}}
