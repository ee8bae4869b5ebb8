# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from lightning_stable.studies.curve import Curve, NoCurve, as_number, counted, curve_of_cells, require_column


def cells(*pairs):
    return [(line, step, value) for line, (step, value) in enumerate(pairs, start=2)]


def test_empty_cells_are_left_out_and_nan_and_infinity_are_numbers():
    pairs = [("0", "1.5"), ("1", ""), ("2", " "), ("3", None), ("4", "nan"), ("5", "-inf"), ("6", "Infinity"), ("7", 2)]
    curve = curve_of_cells("loss", cells(*pairs), has_steps=True)
    assert curve.steps.tolist() == [0, 4, 5, 6, 7]
    assert str(curve.values.tolist()) == "[1.5, nan, -inf, inf, 2.0]"
    assert curve.not_finite == 3
    assert curve.notes == []


def test_what_is_no_number_or_has_no_step_is_left_out_and_said():
    curve = curve_of_cells("a", cells(("0", "1"), ("1", "word"), ("2", [3]), ("", "4"), ("nan", "5")), has_steps=True)
    assert curve.values.tolist() == [1.0]
    assert curve.notes == [
        "2 cells without a number left out, the first in line 3: 'word'.",
        "2 values without a step left out, the first in line 5.",
    ]


def test_without_steps_the_values_are_counted():
    assert curve_of_cells("a", cells((None, "1"), (None, ""), (None, "2")), has_steps=False).steps.tolist() == [0, 1]


@pytest.mark.parametrize("values", [[], ["", ""], ["word"]])
def test_no_number_at_all_is_an_error(values):
    with pytest.raises(NoCurve, match="there are no numbers in 'a'"):
        curve_of_cells("a", cells(*(("0", value) for value in values)), has_steps=True)


def test_a_number_that_float_cannot_hold_is_none():
    assert as_number(10**400) is None
    assert as_number("1e400") == math.inf
    assert as_number({"a": 1}) is None


def test_steps_that_go_back_are_found():
    curve = Curve("a", np.array([0.0, 1, 2, 1, 2, 2, 0]), counted(7))
    assert curve.rewinds.tolist() == [3, 6]
    assert len(curve) == 7


def test_an_unknown_column_is_refused_with_those_there_are():
    require_column("loss", ["step", "loss"])
    with pytest.raises(NoCurve, match=r"^there is no tag 'x'\. There are step, loss\.$"):
        require_column("x", ["step", "loss", "step"], "tag")
    with pytest.raises(NoCurve, match=r"^choose one with `--column`\. There are a\.$"):
        require_column(None, ["a"])
    with pytest.raises(NoCurve, match=r"There are none\.$"):
        require_column("x", [])
    with pytest.raises(NoCurve, match=r"c19 and 5 more\.$"):
        require_column("x", [f"c{number}" for number in range(25)])
