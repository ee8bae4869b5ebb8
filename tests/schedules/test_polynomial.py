# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.schedules import Polynomial, ProfileLR
from tests.schedules.steps import first_rates, sgd


@pytest.mark.parametrize("power", [0.9, 1, 2.0])
def test_it_is_torch_s_polynomial_decay(power):
    torch_s = torch.optim.lr_scheduler.PolynomialLR(sgd(0.3), total_iters=40, power=power)
    rates = first_rates(ProfileLR(sgd(0.3), Polynomial(power), 40), 50)
    assert rates == pytest.approx(first_rates(torch_s, 50), abs=1e-14)


@pytest.mark.parametrize("power", [0, -1.0, math.nan, math.inf])
def test_a_power_of_nothing_is_refused(power):
    with pytest.raises(ValueError, match=r"`Polynomial\(power=\.\.\.\)` must be a number above 0, got"):
        Polynomial(power)
