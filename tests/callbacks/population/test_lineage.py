# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from lightning_stable.callbacks.population.lineage import (
    SCHEDULE,
    Copy,
    Lineage,
    Turn,
    read_schedule,
    write_json,
    write_schedule,
)


def turn(generation, member, lr, score=1.0, interval=10, **changes):
    begin = generation * interval
    fields = {"begin": begin, "end": begin + interval, "global_step": 0, "hyperparameters": {"lr": lr}, "score": score}
    return Turn(generation, member, **{**fields, **changes})


def three_generations():
    """Member 0 copies 2 after generation 0, member 1 copies 0 after generation 1."""
    rates = [[1.0, 2.0, 3.0], [2.4, 2.0, 3.0], [2.4, 1.92, 3.0]]
    turns = [turn(generation, member, rates[generation][member]) for generation in range(3) for member in range(3)]
    return Lineage(turns, [Copy(0, 0, 2, {"lr": 2.4}), Copy(1, 1, 0, {"lr": 1.92})])


def test_a_line_goes_back_through_everybody_who_was_copied():
    lineage = three_generations()
    assert [one.member for one in lineage.line_of(1)] == [2, 0, 1]
    assert [one.member for one in lineage.line_of(0)] == [2, 0, 0]
    assert [one.member for one in lineage.line_of(2)] == [2, 2, 2]
    assert lineage.schedule_of(1) == [
        {"step": 0, "hyperparameters": {"lr": 3.0}},
        {"step": 10, "hyperparameters": {"lr": 2.4}},
        {"step": 20, "hyperparameters": {"lr": 1.92}},
    ]
    assert lineage.schedule_of(2) == [{"step": 0, "hyperparameters": {"lr": 3.0}}]
    assert Lineage().line_of(0) == []
    assert Lineage().schedule_of(3) == []


def test_a_generation_that_is_under_way_has_turns_of_some_only():
    lineage = three_generations()
    lineage.turns = lineage.turns[:7]  # of generation 2, that of member 0
    assert [(one.generation, one.member) for one in lineage.line_of(1)] == [(0, 2), (1, 0)]
    assert [(one.generation, one.member) for one in lineage.line_of(0)] == [(0, 2), (1, 0), (2, 0)]


def test_it_goes_through_json():
    lineage = three_generations()
    assert Lineage.from_json(json.loads(json.dumps(lineage.to_json()))) == lineage


def test_a_schedule_is_written_whole_and_read_again(tmp_path):
    path = tmp_path / "deep" / "schedule.json"
    write_schedule(path, three_generations().schedule_of(1), steps=30)
    assert read_schedule(path) == [(0, {"lr": 3.0}), (10, {"lr": 2.4}), (20, {"lr": 1.92})]
    assert [one.name for one in path.parent.iterdir()] == ["schedule.json"]


def test_a_file_that_cannot_be_written_leaves_nothing_behind(tmp_path):
    (tmp_path / "a.json").mkdir()
    (tmp_path / "a.json" / "full").touch()
    with pytest.raises(OSError, match=r"a\.json"):
        write_json(tmp_path / "a.json", {})
    assert [one.name for one in tmp_path.iterdir()] == ["a.json"]
    with pytest.raises(ValueError, match="Out of range float"):
        write_json(tmp_path / "b.json", {"x": float("nan")})
    assert not (tmp_path / "b.json").exists()


def segment(step=0, **values):
    return {"step": step, "hyperparameters": values or {"lr": 0.1}}


@pytest.mark.parametrize(
    "content",
    [
        "",
        "{",
        "[" * 100_000,
        "[]",
        '"text"',
        "null",
        "\ud800",
        {},
        {"format": SCHEDULE, "version": 2, "segments": [segment()]},
        {"format": "other", "version": 1, "segments": [segment()]},
        {"format": SCHEDULE, "version": 1},
        *(
            {"format": SCHEDULE, "version": 1, "segments": segments}
            for segments in (
                [],
                {},
                [None],
                [segment(1)],
                [segment(), segment()],
                [segment(), segment(5), segment(3)],
                [segment(0.0)],
                [segment(True)],
                [segment("0")],
                [{"step": 0, "hyperparameters": {}}],
                [{"step": 0, "hyperparameters": [1]}],
                [segment(lr="0.1")],
                [segment(lr=None)],
                [segment(lr=True)],
                [segment(lr=-1.0)],
                [segment(lr=0.0)],
                [segment(eps=10**400)],
                [segment(eps=float("nan"))],
                [segment(eps=float("inf"))],
                [segment(lr=0.1), segment(5, eps=0.1)],
            )
        ),
    ],
    ids=lambda content: str(content)[:60],
)
def test_what_is_no_schedule_is_refused_by_its_name(tmp_path, content):
    path = tmp_path / "schedule.json"
    text = content if isinstance(content, str) else json.dumps(content)
    path.write_bytes(text.encode("utf-8", "surrogatepass"))
    with pytest.raises(ValueError, match=r"schedule\.json"):
        read_schedule(path)


def test_a_file_without_end_is_not_read(tmp_path):
    path = tmp_path / "schedule.json"
    with path.open("wb") as file:
        file.truncate(20_000_000)
    with pytest.raises(ValueError, match="larger than"):
        read_schedule(path)
