# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_stable.schedules import Cosine, ProfileLR
from tests.schedules.steps import first_rates, sgd


@pytest.mark.parametrize("lowest", [0.0, 0.03])
def test_it_is_torch_s_cosine_up_to_the_end_and_stays_down_after_it(lowest):
    torch_s = torch.optim.lr_scheduler.CosineAnnealingLR(sgd(0.3), T_max=40, eta_min=lowest)
    rates = first_rates(ProfileLR(sgd(0.3), Cosine(), 40, min_ratio=lowest / 0.3), 50)
    assert rates[:41] == pytest.approx(first_rates(torch_s, 41), abs=1e-14)
    assert rates[41:] == pytest.approx([lowest] * 9)
