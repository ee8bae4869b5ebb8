# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from lightning_stable.schedules import WSD, ProfileLR
from lightning_stable.schedules.wsd import decayed
from tests.schedules.steps import first_rates, sgd


@pytest.mark.parametrize("decay", ["linear", "1-sqrt"])
def test_it_warms_up_stays_and_decays(decay):
    rates = first_rates(ProfileLR(sgd(2.0), WSD(0.25, decay), total_steps=50, warmup_steps=10), 55)
    for step, rate in enumerate(rates):
        if step < 10:
            factor = (step + 1) / 10
        elif step < 40:
            factor = 1.0
        else:
            y = min((step - 40) / 10, 1.0)
            factor = 1 - math.sqrt(y) if decay == "1-sqrt" else 1 - y
        assert rate == pytest.approx(2.0 * factor)


def test_a_decay_over_the_whole_run_is_the_straight_line():
    assert first_rates(ProfileLR(sgd(1.0), WSD(1.0, "linear"), 4), 5) == pytest.approx([1, 0.75, 0.5, 0.25, 0])


def test_without_an_end_it_stays_until_it_is_told_to_finish():
    scheduler = ProfileLR(sgd(1.0), WSD(), warmup_steps=2)
    assert first_rates(scheduler, 10) == [0.5] + [1.0] * 9
    scheduler.cooldown(4)
    assert first_rates(scheduler, 6) == pytest.approx([1, 0.75, 0.5, 0.25, 0, 0])


def test_both_decays_go_from_one_to_zero():
    for decay in ("linear", "1-sqrt"):
        assert (decayed(0.0, decay), decayed(1.0, decay)) == (1.0, 0.0)


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"decay_fraction": 0.0}, r"`WSD\(decay_fraction=...\)` must be a number in \(0, 1\], got 0.0"),
        ({"decay_fraction": math.nan}, "must be a number in"),
        ({"decay": "cosine"}, r"`WSD\(decay=...\)` must be one of 'linear', '1-sqrt', got 'cosine'"),
    ],
)
def test_bad_arguments_are_refused(arguments, said):
    with pytest.raises(ValueError, match=said):
        WSD(**arguments)
