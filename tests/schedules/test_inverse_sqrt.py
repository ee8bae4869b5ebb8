# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from lightning_stable.schedules import InverseSqrt, ProfileLR
from tests.schedules.steps import first_rates, sgd


def test_with_a_warmup_as_long_as_its_timescale_it_is_the_transformer_s_schedule():
    """Vaswani et al.: min(s^-0.5, s w^-1.5) at step s = 1, 2, ..., scaled to a peak of 1."""
    scheduler = ProfileLR(sgd(1.0), InverseSqrt(timescale=20), warmup_steps=20)
    expected = [math.sqrt(20) * min(s**-0.5, s * 20**-1.5) for s in range(1, 101)]
    rates = first_rates(scheduler, 101)
    assert rates[:20] == pytest.approx(expected[:20])
    assert rates[21:] == pytest.approx(expected[20:])  # the peak is held for one step, as by every profile


def test_it_needs_no_end():
    rates = first_rates(ProfileLR(sgd(1.0), InverseSqrt(timescale=10)), 31)
    assert rates[30] == pytest.approx(0.5)


@pytest.mark.parametrize("timescale", [0, -5, math.nan])
def test_no_timescale_is_refused(timescale):
    with pytest.raises(ValueError, match=r"`InverseSqrt\(timescale=\.\.\.\)` must be a number above 0, got"):
        InverseSqrt(timescale)
