# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.schedules import Exponential, ProfileLR
from tests.schedules.steps import first_rates, sgd


def test_it_is_torch_s_exponential_decay_up_to_the_end():
    torch_s = torch.optim.lr_scheduler.ExponentialLR(sgd(0.3), gamma=0.01 ** (1 / 40))
    rates = first_rates(ProfileLR(sgd(0.3), Exponential(final_ratio=0.01), 40), 50)
    assert rates[:41] == pytest.approx(first_rates(torch_s, 41), rel=1e-13)
    assert rates[40:] == pytest.approx([0.003] * 10)


@pytest.mark.parametrize("final_ratio", [0.0, 1.0, -0.1, math.nan])
def test_a_ratio_out_of_its_bounds_is_refused(final_ratio):
    with pytest.raises(ValueError, match=r"`Exponential\(final_ratio=\.\.\.\)` must be a number in \(0, 1\), got"):
        Exponential(final_ratio)
