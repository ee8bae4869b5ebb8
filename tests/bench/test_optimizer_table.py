# SPDX-License-Identifier: Apache-2.0
"""The arithmetic of the table, on times that are made up."""

import pytest

from lightning_stable.bench.optimizer_table import FOREACH, FUSED, Promise, Row, make_table
from lightning_stable.bench.step_turns import Measured

SIZE = 50_000_000
FULL, SPARE = 8 * SIZE, SIZE // 10
ROUNDS = [1.0, 2.0, 4.0]  # of fused AdamW


def taking(ratio, state=FULL, extra=SPARE, waits=None):
    return Measured([ratio * seconds for seconds in ROUNDS], state, extra, waits)


def table_of(device="cpu", size=SIZE, **others):
    measured = {FUSED: taking(1.0, extra=0), FOREACH: taking(2.0, extra=4 * SIZE), **others}
    return make_table(measured, size, tensors=150, device=device)


def promises_of(table):
    return {promise.name: promise for promise in table.promises}


def test_ratios_are_taken_round_by_round_to_either_adamw():
    uneven = Measured([1.0, 6.0, 8.0], FULL, SPARE)
    row = table_of(SPAM=uneven).rows[2]
    assert row.milliseconds == 6000.0
    assert row.to_fused == (1.0, 2.0, 3.0)
    assert row.to_foreach == 1.0
    assert (row.state, row.extra) == (8.0, 0.1)


def test_one_round_is_enough():
    table = make_table({name: Measured([2.0], 80, 0) for name in (FUSED, FOREACH)}, 10, tensors=1, device="cpu")
    assert table.rounds == 1
    assert table.rows[1].to_fused == (1.0, 1.0, 1.0)


def test_a_speed_up_is_that_over_the_faster_of_the_rivals_ways():
    rivals = {"pytorch_optimizer.SPAM": taking(9.0), "pytorch_optimizer.SPAM, foreach": taking(6.0),
              "pytorch_optimizer.StableSPAM": taking(4.0)}  # fmt: skip
    table = table_of(SPAM=taking(1.5), StableSPAM=taking(2.0), **rivals)
    assert table.speed_ups == {"SPAM": 4.0, "StableSPAM": 2.0}
    promises = promises_of(table)
    assert not promises["SPAM: times faster than pytorch_optimizer.SPAM"].is_over
    assert promises["StableSPAM: times faster than pytorch_optimizer.StableSPAM"].is_over
    assert "SPAM is 4.0 x faster than pytorch_optimizer.SPAM" in str(table)


def test_without_the_rival_nothing_is_said_of_it():
    table = table_of(SPAM=taking(1.5))
    assert table.speed_ups == {}
    assert not any("faster" in name for name in promises_of(table))


@pytest.mark.parametrize("name", ["SPAM", "StableSPAM"])
@pytest.mark.parametrize(
    ("device", "row", "measured", "over"),
    [
        ("cpu", "", {"ratio": 1.99}, []),
        ("cpu", "", {"ratio": 2.01}, ["ratio to AdamW fused"]),
        ("cpu", ", every tensor spiking", {"ratio": 3.4}, []),
        ("cpu", ", every tensor spiking", {"ratio": 3.6}, ["ratio to AdamW fused"]),
        ("cpu", "", {"ratio": 1.0, "extra": SIZE // 4}, ["extra bytes a parameter"]),
        ("cpu", "", {"ratio": 1.0, "state": 12 * SIZE}, ["bytes a parameter of state"]),
        ("cuda", "", {"ratio": 1.25, "extra": SIZE}, []),
        ("cuda", "", {"ratio": 1.35}, ["ratio to AdamW fused"]),
        ("cuda", ", every tensor spiking", {"ratio": 1.35}, ["ratio to AdamW fused"]),
    ],
)
def test_what_was_promised_is_held_against_what_was_measured(name, device, row, measured, over):
    promises = promises_of(table_of(device, **{name + row: taking(**measured)}))
    assert promises
    assert [each for each, promise in promises.items() if promise.is_over] == [f"{name}{row}: {what}" for what in over]


def test_nothing_is_promised_of_small_models_or_of_other_rows():
    assert table_of(size=10_000_000, SPAM=taking(9.0)).promises == []
    assert table_of(**{"SPAM, density=0.25": taking(9.0), "SophiaG": taking(9.0)}).promises == []


def test_the_verdict_is_at_the_end_of_the_line():
    assert str(Promise("a", 2.0, bound=2.0)).endswith("2.00  <= 2.00  ok")
    assert str(Promise("a", 2.1, bound=2.0)).endswith("2.10  <= 2.00  over")
    assert str(Promise("a", 3.0, bound=3.0, at_least=True)).endswith("3.00  >= 3.00  ok")
    assert str(Promise("a", 2.9, bound=3.0, at_least=True)).endswith("2.90  >= 3.00  over")


def test_columns_stand_below_their_names_and_fit_the_screen():
    lines = str(table_of("cuda", SPAM=taking(300.0, waits=False))).splitlines()
    head, spam = lines[2], next(line for line in lines if line.startswith("  SPAM "))
    assert max(map(len, lines)) <= 120
    assert head.index("state") + len("state") == spam.index(" 8.00") + len(" 8.00")
    assert head.index("extra") + len("extra") == spam.index(" 0.10") + len(" 0.10")
    assert head.index("waits") + len("waits") == len(spam)
    assert spam.endswith("no")


def test_waiting_is_a_column_of_cuda_only():
    assert "waits" not in str(table_of(SPAM=taking(1.0)))
    row = Row("a", 1.0, (1.0, 1.0, 1.0), 1.0, 8.0, 0.0, waits=True)
    assert str(row).endswith("yes")


def test_json_holds_the_rows_and_the_verdicts():
    content = table_of(SPAM=taking(2.5)).as_json()
    assert [row["name"] for row in content["rows"]] == [FUSED, FOREACH, "SPAM"]
    assert content["promises"][0] == {
        "name": "SPAM: ratio to AdamW fused",
        "value": 2.5,
        "bound": 2.0,
        "at_least": False,
        "is_over": True,
    }
    assert (content["parameters"], content["tensors"], content["rounds"]) == (SIZE, 150, 3)
