# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from lightning_stable.schedules import REX, ProfileLR
from tests.schedules.steps import first_rates, sgd


@pytest.mark.parametrize("beta", [0.1, 0.5, 0.9])
def test_it_matches_the_equation(beta):
    for done in range(41):
        z = 1.0 - done / 40
        assert REX(beta).factor(done, 40) == pytest.approx(z / ((1.0 - beta) + beta * z), abs=1e-15)


def test_the_paper_s_curve_passes_through_its_known_values():
    assert first_rates(ProfileLR(sgd(1.0), REX(), total_steps=4), 6) == pytest.approx([1, 6 / 7, 2 / 3, 2 / 5, 0, 0])


def test_the_rate_stays_above_linear_decay():
    rates = first_rates(ProfileLR(sgd(1.0), REX(), total_steps=100), 100)
    assert all(rate > 1 - step / 100 for step, rate in enumerate(rates) if step > 0)


@pytest.mark.parametrize("beta", [0.0, -0.5, 1.1, math.nan, "0.5", True])
def test_beta_outside_its_bounds_is_refused(beta):
    with pytest.raises(ValueError, match=r"`REX\(beta=\.\.\.\)` must be a number in \(0, 1\], got"):
        REX(beta)
