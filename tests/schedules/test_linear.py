# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_stable.schedules import Linear, ProfileLR
from tests.schedules.steps import first_rates, sgd


def test_it_is_torch_s_linear_decay():
    optimizer = sgd(0.3)
    torch_s = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=1.0, end_factor=0.0, total_iters=40)
    assert first_rates(ProfileLR(sgd(0.3), Linear(), 40), 50) == pytest.approx(first_rates(torch_s, 50), abs=1e-15)


def test_with_a_minimum_it_is_a_line_to_there():
    rates = first_rates(ProfileLR(sgd(1.0), Linear(), 4, min_ratio=0.2), 6)
    assert rates == pytest.approx([1.0, 0.8, 0.6, 0.4, 0.2, 0.2])
