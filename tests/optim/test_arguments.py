# SPDX-License-Identifier: Apache-2.0
import math

import pytest

from lightning_stable.optim.arguments import require_fraction, require_rates, require_steps


@pytest.mark.parametrize(
    ("group", "message"),
    [
        ({"lr": -1.0}, r"`Any\(lr=...\)` must be at least 0, got -1.0"),
        ({"lr": math.nan}, r"`Any\(lr=...\)` must be at least 0, got nan"),
        ({"eps": -1e-8}, r"`Any\(eps=...\)` must be at least 0, got -1e-08"),
        ({"weight_decay": -0.1}, r"`Any\(weight_decay=...\)` must be at least 0, got -0.1"),
        ({"betas": (0.9, 1.0)}, r"`Any\(betas=...\)` must be at least 0 and less than 1, got 1.0"),
        ({"betas": (-0.1, 0.9)}, r"`Any\(betas=...\)` must be at least 0 and less than 1, got -0.1"),
    ],
)
def test_a_group_out_of_bounds_is_refused(group, message):
    with pytest.raises(ValueError, match=message):
        require_rates("Any", group)


def test_the_bounds_themselves_are_let_through():
    require_rates("Any", {"lr": 0.0, "eps": 0.0, "weight_decay": 0.0, "betas": (0.0, 0.0)}, rho=0.0)
    require_fraction("Any", theta=0.0)
    require_steps("Any", 1, interval=1, other=None)


def test_more_arguments_can_be_named():
    with pytest.raises(ValueError, match=r"`Any\(rho=...\)` must be at least 0, got -1.0"):
        require_rates("Any", {}, rho=-1.0)
    with pytest.raises(ValueError, match=r"`Any\(interval=...\)` must be at least 1, got 0"):
        require_steps("Any", 1, interval=0)


def test_what_is_no_number_is_named():
    with pytest.raises(TypeError, match=r"`Any\(lr=...\)` must be a number, got 'fast'"):
        require_rates("Any", {"lr": "fast"})
    with pytest.raises(TypeError, match=r"`Any\(theta=...\)` must be a number, got None"):
        require_fraction("Any", theta=None)
    with pytest.raises(TypeError, match=r"`Any\(interval=...\)` must be a whole number, got 1.5"):
        require_steps("Any", 1, interval=1.5)
    for betas in (0.9, (0.9,), (0.9, 0.99, 0.999)):
        with pytest.raises(ValueError, match=r"`Any\(betas=...\)` must be two numbers, got "):
            require_rates("Any", {"betas": betas})
