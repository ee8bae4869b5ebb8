# SPDX-License-Identifier: Apache-2.0
"""Random faults at random steps, in every setting: the run ends, and ends well.

A test that fails prints the line that makes its schedule again.
"""

import itertools

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_stable.testing import FaultSchedule, InjectFault, random_faults
from tests.chaos.chaotic_runs import (
    BATCHES,
    EPOCHS,
    KINDS,
    LADDERS,
    PRECISIONS,
    SNAPSHOT_EVERY,
    assert_survived,
    chaotic_run,
    steps_of_an_epoch,
)
from tests.faulty_runs import assert_same, make_batches, run
from tests.guard.resume.test_exact_resume import comparable
from tests.guard.test_spike_guard import guard

pytestmark = [
    pytest.mark.timeout(60),
    # a scaler that skips the first step of a run
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
]

SETTINGS = list(itertools.product(LADDERS, PRECISIONS, (1, 2)))


def schedule_of(seed, precision, accumulate):
    """One to five faults; of every other seed they are all in the data, and come again in the next epoch."""
    kinds = {kind: {**arguments, "repeat": seed % 2 == 0} for kind, arguments in KINDS.items()}
    if seed % 5 == 0:
        kinds["lr_drift"] = {"factor": 1.3}
        kinds |= {"dead_loss_scale": {}} if precision == "16-mixed" else {}
    return random_faults(seed, steps=steps_of_an_epoch(accumulate), kinds=kinds, count=1 + seed % 5)


def survive(seed, num_workers=0):
    ladder, precision, accumulate = SETTINGS[(seed * 7) % len(SETTINGS)]  # 7 and 24 have no common divisor
    schedule = schedule_of(seed, precision, accumulate)
    assert_survived(chaotic_run(schedule, ladder, precision, accumulate, num_workers))


@pytest.mark.parametrize("seed", range(40))
def test_a_random_schedule_is_survived(seed):
    survive(seed)


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(1000, 1240))
def test_many_random_schedules_are_survived(seed):
    survive(seed, num_workers=2 * (seed % 4 == 0))


def faults(kind, *steps):
    return FaultSchedule([InjectFault(kind, step=step, **KINDS[kind]) for step in steps])


PLACES = {
    "first step": lambda last: (0,),
    "warm-up": lambda last: (1, 2),
    "twice in a row": lambda last: (4, 5),
    "a whole snapshot": lambda last: (4, 5, 6, 7),
    "end of an epoch": lambda last: (last,),
    "both sides of an epoch's end": lambda last: (last, last + 1),
    "end of the run": lambda last: (2 * last + 1,),
    "in the replay that follows": lambda last: (5, 6),
    "in a replay at the end of an epoch": lambda last: (last, last + 2),
    "every second one": lambda last: tuple(range(0, 2 * last, 2)),
}


@pytest.mark.parametrize("accumulate", [1, 2])
@pytest.mark.parametrize("ladder", LADDERS)
@pytest.mark.parametrize("place", PLACES)
def test_a_fault_is_survived_wherever_it_comes(place, ladder, accumulate):
    schedule = faults("nan_loss", *PLACES[place](steps_of_an_epoch(accumulate) - 1))
    assert_survived(chaotic_run(schedule, ladder, "32-true", accumulate))


def resume_somewhere(seed, folder):
    """The incidents and the end of a run that goes on from one of its checkpoints, and of one that need not.

    A resumed run begins with a new snapshot, from which fewer steps are replayed. So only skips, and replays without
    transient faults, which count tries, can be expected to go the same way; and tries differ after a replay.
    """
    ladder = "replay" if seed % 2 == 0 and seed % 5 else "skip"
    _, precision, accumulate = SETTINGS[(seed * 7) % len(SETTINGS)]
    folder.mkdir()

    def train(callbacks=(), **arguments):
        guarded = guard(*LADDERS[ladder](), snapshot_every=SNAPSHOT_EVERY, forgive_after=5)
        faults = schedule_of(seed, precision, accumulate)
        arguments |= {"accumulate_grad_batches": accumulate, "epochs": EPOCHS, **PRECISIONS[precision]()}
        outcome = run(make_batches(BATCHES), [guarded, *faults, *callbacks], shuffle=True, **arguments)
        incidents = [str(incident) for incident in guarded.incidents]
        return [line.partition(": ")[2] if ladder == "replay" else line for line in incidents], comparable(outcome)

    every_step = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    expected = train([every_step], enable_checkpointing=True)
    end = expected[1].global_step  # from there nothing goes on
    paths = sorted(path for path in folder.iterdir() if int(path.stem.removeprefix("step=")) < end)
    return train(ckpt_path=paths[seed % len(paths)]), expected


RESUMED = pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")


@RESUMED
@pytest.mark.parametrize("seed", range(2000, 2024))
def test_a_run_resumed_from_any_checkpoint_ends_as_if_it_had_not_been(tmp_path, seed):
    actual, expected = resume_somewhere(seed, tmp_path / "checkpoints")
    assert_same(actual, expected)


@pytest.mark.slow
@RESUMED
@pytest.mark.parametrize("seed", range(3000, 3100))
def test_many_runs_resumed_from_any_checkpoint_end_as_if_they_had_not_been(tmp_path, seed):
    actual, expected = resume_somewhere(seed, tmp_path / "checkpoints")
    assert_same(actual, expected)
