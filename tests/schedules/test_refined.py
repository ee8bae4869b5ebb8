# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.schedules import Linear, ProfileLR, Refined, refine, save_schedule
from tests.schedules.steps import first_rates, sgd


def test_without_a_pilot_run_it_is_linear_decay():
    assert first_rates(ProfileLR(sgd(0.1), Refined(), 37), 40) == first_rates(ProfileLR(sgd(0.1), Linear(), 37), 40)


def test_it_follows_the_file_in_a_run_of_any_length(tmp_path):
    path = tmp_path / "refined.json"
    schedule = refine([3.0, 2.0, 1.0, 1.0, 1.0])
    save_schedule(path, schedule, "l2")
    rates = first_rates(ProfileLR(sgd(1.0), Refined(str(path)), total_steps=4), 6)
    assert rates == pytest.approx([*schedule.tolist(), 0.0], abs=1e-8)
    longer = first_rates(ProfileLR(sgd(1.0), Refined(str(path)), total_steps=8), 9)
    assert longer[::2] == pytest.approx(rates[:5], abs=1e-12)
    assert longer[1] == pytest.approx((rates[0] + rates[1]) / 2)


def test_constant_norms_are_the_straight_line_at_every_step(tmp_path):
    path = tmp_path / "refined.json"
    save_schedule(path, refine([0.5] * 300), "l2")
    rates = first_rates(ProfileLR(sgd(1.0), Refined(str(path)), total_steps=1234), 1234)
    assert rates == pytest.approx([1 - step / 1234 for step in range(1234)], abs=2e-9)
