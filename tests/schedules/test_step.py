# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.schedules import ProfileLR, Step
from tests.schedules.steps import first_rates, sgd


def test_it_is_torch_s_schedule_with_milestones():
    torch_s = torch.optim.lr_scheduler.MultiStepLR(sgd(0.3), milestones=[20, 30], gamma=0.1)
    rates = first_rates(ProfileLR(sgd(0.3), Step((0.5, 0.75), drop=0.1), 40), 50)
    assert rates == pytest.approx(first_rates(torch_s, 50))


@pytest.mark.parametrize("total", [7, 100, 1000, 12345])
def test_a_milestone_is_at_its_step_whatever_floating_point_makes_of_the_fraction(total):
    for percent in range(1, 100):
        profile, first = Step([percent / 100], drop=0.5), -(-percent * total // 100)  # rounded up, in integers
        assert [profile.factor(done, total) for done in (first - 1, first)] == [1.0, 0.5]


@pytest.mark.parametrize(
    "milestones", [[], [0.0], [1.0], [0.7, 0.5], [0.5, 0.5], [math.nan], "0.5", 0.5, [True]], ids=str
)
def test_milestones_that_are_none_are_refused(milestones):
    with pytest.raises(ValueError, match=r"`Step\(milestones=\.\.\.\)` must be fractions of the run that rise"):
        Step(milestones)


@pytest.mark.parametrize("drop", [0.0, 1.0, -1.0, math.nan])
def test_a_drop_out_of_its_bounds_is_refused(drop):
    with pytest.raises(ValueError, match=r"`Step\(drop=\.\.\.\)` must be a number in \(0, 1\), got"):
        Step(drop=drop)
