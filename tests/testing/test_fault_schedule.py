# SPDX-License-Identifier: Apache-2.0
import pickle
from collections import Counter

import pytest

from lightning_stable.guard import SkipStep
from lightning_stable.testing import FaultSchedule, InjectFault, random_faults
from lightning_stable.testing.fault_schedule import ANY_MODEL
from tests.faulty_runs import make_batches, run
from tests.guard.test_spike_guard import guard


def test_what_it_prints_makes_it_again():
    kinds = {"nan_loss": {"repeat": True}, "huge_activation": {"target": "head", "factor": 3.0}, "kill": {}}
    schedule = random_faults(seed=5, steps=50, kinds=kinds, count=9)
    assert eval(repr(schedule), {"FaultSchedule": FaultSchedule, "InjectFault": InjectFault}) == schedule
    assert "\n" not in repr(schedule)
    assert pickle.loads(pickle.dumps(schedule)) == schedule


def test_the_same_seed_draws_the_same_faults_everywhere():
    drawn = random_faults(seed=2**70, steps=1000, count=4)
    assert repr(drawn) == (
        "FaultSchedule([InjectFault('huge_gradient', step=107), InjectFault('huge_loss', step=232), "
        "InjectFault('nan_loss', step=415), InjectFault('huge_gradient', step=751)])"
    )


def test_steps_differ_and_lie_where_they_were_asked_for():
    for seed in range(50):
        steps = [fault.step for fault in random_faults(seed, steps=12, count=6, first=4)]
        assert steps == sorted(set(steps))
        assert 4 <= steps[0] <= steps[-1] < 12
    everything = random_faults(0, steps=12, count=8, first=4)
    assert [fault.step for fault in everything] == list(range(4, 12))


def test_every_step_and_every_kind_is_drawn_as_often_as_any_other():
    faults = [fault for seed in range(2000) for fault in random_faults(seed, steps=10, count=2)]
    for counts in (Counter(fault.step for fault in faults), Counter(fault.kind for fault in faults)):
        expected = len(faults) / len(counts)
        assert all(0.8 * expected < count < 1.2 * expected for count in counts.values())
    assert {fault.kind for fault in faults} == set(ANY_MODEL)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kinds": []}, r"`random_faults\(kinds=...\)` must hold at least one kind, got none."),
        ({"count": 9, "first": 2}, r"must be from 0 to 8, the steps from first=2 to steps=10, got 9."),
        ({"count": -1}, r"must be from 0 to 10, .*, got -1."),
        ({"kinds": ["nan"]}, r"`InjectFault\(kind='nan'\)` is not known"),
    ],
)
def test_a_bad_argument_is_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        random_faults(**{"seed": 0, "steps": 10, **arguments})


def test_a_fault_twice_is_refused():
    with pytest.raises(ValueError, match=r"must hold each fault once, got InjectFault\('nan_loss', step=2\) more than"):
        FaultSchedule([InjectFault("nan_loss", step=2), InjectFault("nan_loss", step=2)])


def test_it_unpacks_into_the_callbacks_of_a_run_and_can_be_used_again():
    schedule = FaultSchedule([InjectFault("nan_loss", step=2), InjectFault("nan_gradient", step=3)])
    for _ in range(2):
        guarded = guard(SkipStep(times=9))
        run(make_batches(6), [guarded, *schedule], epochs=1)
        assert [incident.step for incident in guarded.incidents] == [2, 3]
        assert [fault.fired[0].step for fault in schedule] == [2, 3]
        assert len(schedule) == 2
        assert schedule[0].kind == "nan_loss"
