# SPDX-License-Identifier: Apache-2.0
"""The picture shows the curve, the edge and what is recommended, whatever the losses are."""

import math

import pytest

from lightning_stable.callbacks.range_test.curve import RangeCurve
from lightning_stable.callbacks.range_test.picture import draw, png_of
from lightning_stable.callbacks.range_test.sides import RangeTestResult

RATES = [1e-3, 1e-2, 1e-1, 1.0, 10.0]


def result(losses, **more):
    return RangeTestResult(RATES[: len(losses)], losses, losses, 0.1, 0.01, 0.03, diverged=True, **more)


def test_it_marks_the_edge_the_range_and_the_steepest_descent():
    (axes,) = draw(result([2.0, 1.8, 1.0, 0.9, 1e9]), logarithmic=True).axes
    assert axes.get_xscale() == "log"
    assert axes.get_title("left") == "recommended: max_lr 0.1, min_lr 0.01"
    verticals = {line.get_xdata()[0] for line in axes.lines if len(set(line.get_xdata())) == 1}
    assert verticals == {0.1, 0.03}
    bottom, top = axes.get_ylim()
    assert bottom < 0.9 < 2.0 < top < 3.0  # what explodes does not flatten the rest


def test_each_test_has_its_panel_and_each_value_its_line():
    curves = {value: RangeCurve(RATES[:2], [2.0, 1.0], [2.0, 1.5], 1e-2, True, None) for value in (0.8, 0.9)}
    none = {0.5: RangeCurve([], [], [], None, True, None)}
    more = {"of_momentum": curves, "momentum": 0.9, "of_weight_decay": none}
    figure = draw(result([2.0, 1.0, 1.5], **more), logarithmic=False)
    first, momentum, decay = figure.axes
    assert first.get_xscale() == "linear"
    assert [text.get_text() for text in momentum.get_legend().get_texts()] == [
        "0.8: max_lr 0.01",
        "0.9: max_lr 0.01, recommended",
    ]
    assert [text.get_text() for text in decay.get_legend().get_texts()] == ["0.5: none held"]
    assert png_of(figure)[1:4] == b"PNG"


@pytest.mark.parametrize(
    "losses",
    [[2.0], [1.0, 1.0], [1.0, math.nan], [math.nan], [0.0, 0.0, 1e300], [-5.0, -6.0], [1.0, math.inf, -math.inf]],
)
def test_it_can_always_be_drawn(losses):
    assert png_of(draw(result(losses), logarithmic=True))[1:4] == b"PNG"
