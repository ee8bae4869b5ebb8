# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.guard import Halt, Rollback, ScaleLR, SkipStep
from lightning_stable.guard.ladder import Ladder


def climbed(ladder, times):
    return [type(ladder.climb()).__name__ for _ in range(times)]


def test_it_climbs_in_order_and_ends_at_halt():
    ladder = Ladder([SkipStep(times=2), Rollback(times=1), ScaleLR(times=1), Halt()], forgive_after=None)
    assert climbed(ladder, 6) == ["SkipStep", "SkipStep", "Rollback", "ScaleLR", "Halt", "Halt"]


def test_a_ladder_without_halt_halts_all_the_same():
    assert climbed(Ladder([SkipStep(times=1)], forgive_after=None), 2) == ["SkipStep", "Halt"]


def test_clean_steps_in_a_row_forgive_everything():
    ladder = Ladder([SkipStep(times=1), Halt()], forgive_after=3)
    for _ in range(4):
        assert climbed(ladder, 1) == ["SkipStep"]
        for _ in range(3):
            ladder.clean_step()


def test_an_incident_starts_the_count_of_clean_steps_again():
    ladder = Ladder([SkipStep(times=2), Halt()], forgive_after=3)
    ladder.climb()
    ladder.clean_step()
    ladder.clean_step()
    ladder.climb()
    ladder.clean_step()
    assert climbed(ladder, 1) == ["Halt"]


def test_the_budget_survives_a_state_dict():
    first = Ladder([SkipStep(times=2), Halt()], forgive_after=3)
    first.climb()
    first.clean_step()
    second = Ladder([SkipStep(times=2), Halt()], forgive_after=3)
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert climbed(second, 2) == ["SkipStep", "Halt"]


def test_a_ladder_of_another_length_starts_afresh():
    first = Ladder([SkipStep(times=1), Halt()], forgive_after=3)
    first.climb()
    second = Ladder([SkipStep(times=1), Rollback(), Halt()], forgive_after=3)
    second.load_state_dict(first.state_dict())
    assert climbed(second, 1) == ["SkipStep"]


@pytest.mark.parametrize(
    ("rungs", "forgive_after", "error", "message"),
    [
        ([], 1, ValueError, r"`SpikeGuard\(ladder=...\)` must hold at least one response, got an empty list"),
        ([Halt(), SkipStep()], 1, ValueError, "must be the last response"),
        (["SkipStep"], 1, TypeError, "must hold responses such as `SkipStep\\(\\)`, got 'SkipStep'"),
        ([Halt()], 0, ValueError, r"`SpikeGuard\(forgive_after=...\)` must be at least 1 or None, got 0"),
    ],
)
def test_a_ladder_that_cannot_work_is_refused(rungs, forgive_after, error, message):
    with pytest.raises(error, match=message):
        Ladder(rungs, forgive_after)
