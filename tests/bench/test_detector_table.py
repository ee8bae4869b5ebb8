# SPDX-License-Identifier: Apache-2.0
import numpy as np

from lightning_stable.bench.detector_table import Row, goals, pair_table, table
from lightning_stable.bench.labelled_curves import DETONATION, SLOW_DIVERGENCE, Curve, Event

CURVES = [
    Curve("detonates", np.zeros(1000), [Event(DETONATION, 500, 1000)]),
    Curve("diverges", np.zeros(1000), [Event(SLOW_DIVERGENCE, 500, 1000)]),
]


def row(name, *alarms):
    found = Row(name)
    for curve, where in zip(CURVES, alarms, strict=True):
        found.add("generated", curve, np.isin(np.arange(1000), where))
    return found


POINT, NERVOUS, SLOW = row("point", [500], []), row("nervous", [3, 500], [7]), row("slow", [], [600])


def test_a_detector_is_a_line():
    assert (
        table([POINT]).splitlines()[1] == "point      generated       1 of 1  0 of 1      -     0.00    0 of 0        -"
    )


def test_side_by_side_two_find_what_either_does():
    found = POINT.united(SLOW).totals()["generated"]
    assert (found.found_detonations, found.slow_delays, found.false_alarms) == (1, [100], 0)


def test_the_best_pair_comes_first():
    lines = pair_table([POINT, NERVOUS, SLOW], ["nervous", "point"], ["slow"]).splitlines()
    assert [line.split("  ")[0] for line in lines[1:3]] == ["point + slow", "nervous + slow"]


def test_the_goals_say_what_holds():
    pair = POINT.united(SLOW)
    assert [line.split()[-1] for line in goals([pair], "point + slow").splitlines()] == ["ok"] * 3
    assert [line.split()[-1] for line in goals([NERVOUS], "nervous").splitlines()] == ["ok", "over", "over"]
