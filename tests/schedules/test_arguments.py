# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from lightning_stable.schedules.arguments import is_number, require_one_of, require_positive, require_within


@pytest.mark.parametrize(
    ("value", "bounds", "good"),
    [
        (0, "[0, 1]", True),
        (0, "(0, 1]", False),
        (1, "(0, 1]", True),
        (1, "(0, 1)", False),
        (0.5, "(0, 1)", True),
        (math.nan, "[0, 1]", False),
        (math.inf, "[0, 1]", False),
        (True, "[0, 1]", False),
        (np.float32(0.5), "(0, 1)", True),
        (np.int64(1), "(0, 1]", True),
        (np.float64("nan"), "[0, 1]", False),
        (np.bool_(True), "[0, 1]", False),
        ("0.5", "[0, 1]", False),
        (None, "[0, 1]", False),
    ],
)
def test_bounds_are_open_or_closed_as_they_are_written(value, bounds, good):
    if good:
        assert require_within("X", "y", value, bounds) == value
    else:
        with pytest.raises(ValueError, match=r"`X\(y=\.\.\.\)` must be a number in .*, got"):
            require_within("X", "y", value, bounds)


def test_positive_numbers_and_texts():
    assert require_positive("X", "y", 1e-9) == 1e-9
    for wrong in (0, -1, math.nan, "1", False):
        with pytest.raises(ValueError, match="must be a number above 0"):
            require_positive("X", "y", wrong)
    assert require_one_of("X", "y", "a", ("a", "b")) == "a"
    with pytest.raises(ValueError, match=r"`X\(y=\.\.\.\)` must be one of 'a', 'b', got 'c'"):
        require_one_of("X", "y", "c", ("a", "b"))
    assert is_number(0)
