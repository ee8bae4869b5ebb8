# SPDX-License-Identifier: Apache-2.0
from lightning_stable.studies.table import plain_table


def test_names_stay_whole_and_numbers_stand_to_the_right():
    rows = [["stability/attention_entropy/mean", "nan"], ["b", "-12.5"], ["c", ""]]
    lines = plain_table("Metrics", ["metric", "last"], rows).splitlines()
    assert lines[0] == "Metrics"
    assert lines[4] == "stability/attention_entropy/mean    nan"
    assert lines[5] == "b                                 -12.5"
    assert lines[6] == "c"


def test_words_stand_to_the_left():
    assert plain_table("", ["a"], [["x"], ["long"]]).splitlines()[2:] == ["a", "----", "x", "long"]


def test_a_table_without_rows_has_its_head():
    assert plain_table("T", ["a", "bb"], []).splitlines() == ["T", "", "a  bb", "-  --"]
