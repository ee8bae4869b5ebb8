# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.guard import ClipStep, Halt, Notify, Rollback, SaveBatch, ScaleLR, SkipData, SkipStep
from lightning_stable.guard.ladder import Escalation, Ladder


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


def test_a_rung_that_does_not_apply_is_passed_over_and_keeps_its_budget():
    ladder = Ladder([ClipStep(times=1), SkipStep(times=1), Halt()], forgive_after=None)
    assert isinstance(ladder.climb(lambda rung: not isinstance(rung, ClipStep)), SkipStep)
    assert climbed(ladder, 2) == ["ClipStep", "Halt"]


def test_side_responses_act_on_every_spike_and_answer_none():
    ladder = Ladder([SaveBatch(times=1), SkipStep(times=3), Notify(times=2), Halt()], forgive_after=2)
    acted = []
    for _ in range(3):
        assert climbed(ladder, 1) == ["SkipStep"]
        acted.append([type(side).__name__ for side in ladder.side_responses()])
    assert acted == [["SaveBatch", "Notify"], ["Notify"], []]
    ladder.clean_step()
    ladder.clean_step()
    assert [type(side).__name__ for side in ladder.side_responses()] == ["SaveBatch", "Notify"]


def test_the_cooldown_after_a_rollback_is_for_the_rungs_behind_it():
    ladder = Ladder([SkipStep(times=9), Rollback(times=9), ScaleLR(times=1), Halt()], None, cooldown=2)
    ladder.climb(lambda rung: not isinstance(rung, SkipStep))  # a rollback
    ladder.clean_step(is_replayed=True)
    ladder.clean_step(is_replayed=True)  # no time passes while what was there is done again
    assert climbed(ladder, 1) == ["ScaleLR"]
    ladder.clean_step()
    assert climbed(ladder, 1) == ["Halt"]
    ladder.clean_step()
    assert climbed(ladder, 1) == ["SkipStep"]


def test_a_new_rollback_begins_the_cooldown_anew_and_forgiving_does_not_end_it():
    ladder = Ladder([Rollback(times=1), SkipData(times=1), SkipStep(times=9)], forgive_after=3, cooldown=5)
    assert climbed(ladder, 3) == ["Rollback", "SkipData", "SkipStep"]
    for expected in ("SkipStep", "Rollback"):
        for _ in range(4):
            ladder.clean_step()
        assert climbed(ladder, 1) == [expected]


def test_a_place_is_the_same_for_as_many_steps_as_it_was_rolled_back_over():
    escalation = Escalation()
    escalation.rolled_back(windows=3, replayed=0)
    for repeats in (1, 1, 1, 0):
        assert escalation.repeats == repeats
        escalation.clean_step()
    escalation.rolled_back(windows=3, replayed=2)
    for _ in range(4):
        escalation.clean_step()
    assert escalation.repeats == 1  # two replayed, two of the three behind them
    escalation.rolled_back(windows=1, replayed=0)
    assert escalation.repeats == 2
    escalation.clean_step()
    assert escalation.repeats == 0
    escalation.rolled_back(windows=1, replayed=0)
    assert escalation.repeats == 1  # another place


def test_a_place_is_remembered_when_budgets_are_forgiven():
    ladder = Ladder([Rollback(times=1), Halt()], forgive_after=2)
    ladder.climb()
    ladder.escalation.rolled_back(windows=4, replayed=0)
    for _ in range(3):
        ladder.clean_step()
    assert ladder.escalation.repeats == 1
    assert climbed(ladder, 2) == ["Rollback", "Halt"]
    ladder.clean_step()
    assert ladder.escalation.repeats == 0


def test_a_replay_forgives_nothing():
    ladder = Ladder([SkipStep(times=1), Rollback(times=1), Halt()], forgive_after=2)
    assert climbed(ladder, 2) == ["SkipStep", "Rollback"]
    ladder.escalation.rolled_back(windows=5, replayed=4)
    for _ in range(4):
        ladder.clean_step(is_replayed=True)
    assert climbed(ladder, 1) == ["Halt"]


def test_cooldown_and_escalation_survive_a_state_dict():
    def made():
        return Ladder([Rollback(times=9), SkipStep(times=9), Halt()], forgive_after=None, cooldown=3)

    first = made()
    first.climb()
    first.escalation.rolled_back(windows=4, replayed=0)
    first.clean_step()
    second = made()
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert second.escalation.repeats == 1
    assert climbed(second, 1) == ["SkipStep"]


def test_somebody_must_answer():
    with pytest.raises(ValueError, match=r"must hold a response that answers, besides those that save or notify"):
        Ladder([SaveBatch(), Notify()], forgive_after=1)


def test_a_cooldown_below_zero_is_refused():
    with pytest.raises(ValueError, match=r"`SpikeGuard\(cooldown=...\)` must be at least 0, got -1"):
        Ladder([Halt()], forgive_after=1, cooldown=-1)
