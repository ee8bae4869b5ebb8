# SPDX-License-Identifier: Apache-2.0
"""One rule for who is better, and the table that applies it."""

import pytest

from lightning_stable.studies.survival.gaps import Gap, gaps
from lightning_stable.studies.survival.verdicts import RULE, compare, verdict_table
from tests.studies.survival.outcomes import MIXED, NAN, three_sides


def gap(*values, **counts):
    return Gap(dict(enumerate(values)), **counts)


def row(found):
    """The cells behind the stream."""
    line = verdict_table({MIXED: found}).splitlines()[-1]
    return [cell.strip() for cell in line.strip("|").split("|")][1:]


@pytest.mark.parametrize(
    ("one", "other", "said"),
    [
        (gap(0.50, 0.51, 0.49), gap(0.001, 0.002, 0.0), "+0.499 ± 0.009, worse"),
        (gap(0.001, 0.002, 0.0), gap(0.50, 0.51, 0.49), "-0.499 ± 0.009, better"),
        (gap(0.1, 0.3), gap(0.2, 0.2), "+0.000 ± 0.141, within the spread"),
        (gap(0.1, 0.2), gap(0.1, 0.2), "exactly the same"),
        (gap(lost=3), gap(0.1, 0.2, 0.3), "worse: 3 runs more without a gap"),
        (gap(0.1, 0.2, 0.3), gap(0.1, 0.2, lost=1), "better: 1 run fewer without a gap"),
        (gap(0.1, 0.2, no_reference=1), gap(0.5, 0.6, 0.7), "worse: 1 run more without a gap"),
        (gap(0.5), gap(0.5001), "no verdict: 1 seed"),
        (gap(lost=3), gap(lost=3), "no verdict: 0 seeds"),
        (gap(0.1, lost=1), Gap({1: 0.1}, lost=1), "no verdict: 0 seeds"),
    ],
)
def test_how_one_gap_is_to_another(one, other, said):
    assert compare(one, other) == said


def test_seeds_are_compared_to_themselves():
    """What is a little larger in every seed is larger, however far the seeds are apart."""
    low, high = gap(0.0, 1.0, 2.0), gap(0.1, 1.1, 2.1)
    assert compare(high, low) == "+0.100 ± 0.000, worse"
    assert compare(high, Gap({2: 2.0, 1: 1.0, 0: 0.0})) == "+0.100 ± 0.000, worse", "whatever their order"


def test_the_same_words_wherever_the_full_recipe_stands():
    near, far = gap(0.02, 0.06), gap(0.02, 0.04)
    assert row({"full": near, "clip": far})[:3] == [
        "2 of 2",
        "AdamW + global clip, 0.030 ± 0.014",
        "+0.010 ± 0.014, within the spread",
    ]
    assert row({"full": far, "clip": near})[:3] == [
        "1 of 2",
        "AdamW + global clip, 0.040 ± 0.028",
        "-0.010 ± 0.014, within the spread",
    ]


def test_a_place_that_is_shared_is_the_better_one():
    assert row({"clip": gap(0.1, 0.2), "adamw": gap(0.3, 0.4), "full": gap(0.1, 0.2)})[0] == "1 of 3"


def test_a_row_for_each_stream_below_the_rule():
    runs = three_sides()
    table = verdict_table({stream: gaps(runs, stream) for stream in (MIXED, NAN)})
    assert table.startswith(RULE)
    assert [line.strip("| ").split(" | ") for line in table.splitlines()[-2:]] == [
        [
            "mixed, 5 %",
            "1 of 4",
            "SpikeGuard, skip, 0.040 ± 0.014",
            "-0.020 ± 0.028, within the spread",
            "exactly the same",
        ],
        ["NaN, 0.5 %", "2 of 4", "SpikeGuard, skip, 0.010 ± 0.014", "+0.050 ± 0.014, worse", "+0.400 ± 0.000, worse"],
    ]


def test_who_is_not_there_is_left_out():
    assert row({"clip": gap(0.1, 0.2)}) == ["", "", "", ""]
    assert row({"full": gap(0.1, 0.2)}) == ["", "", "", ""]
