# SPDX-License-Identifier: Apache-2.0
"""A run that a signal ends, at any step or in the middle of a write, goes on as if nothing had been.

SIGTERM lets Lightning finish the batch that runs, and ends `fit` with `SIGTERMException`; SIGKILL and a full file
system let nobody finish anything.
"""

import signal

import pytest
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tests.chaos.alone import call_alone
from tests.chaos.interrupted_runs import (
    WAYS,
    assert_it_is_as_if_nothing_had_been,
    die,
    interrupted,
    saved_when_terminated,
)

pytestmark = [
    # a scaler that skips the first step of a run
    pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step"),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*"),
]

SEEDS, SLOW_SEEDS = range(5000, 5006), range(6000, 6040)


def terminate(seed, folder):
    before = signal.getsignal(signal.SIGTERM)
    left = folder / "terminated"
    left.mkdir()
    with pytest.raises(SIGTERMException):
        interrupted(seed, left, "terminate")
    assert signal.getsignal(signal.SIGTERM) == before
    assert_it_is_as_if_nothing_had_been(seed, left, folder)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_run_that_is_terminated_goes_on_as_if_it_had_not_been(seed, tmp_path):
    terminate(seed, tmp_path)


def save_and_go_on(seed, folder):
    """Without transient faults, of which a window that is begun again is another try."""
    setting = "skip", ("32-true", "16-mixed")[seed % 4 // 2], (1, 2, 3)[seed % 3]
    left = folder / "terminated"
    left.mkdir()
    with pytest.raises(SIGTERMException):
        saved_when_terminated(seed, left, setting)
    assert_it_is_as_if_nothing_had_been(seed, left, folder, setting)


IN_THE_DATA = [seed for seed in range(7000, 7070) if seed % 2 == 0 and seed % 5]


@pytest.mark.parametrize("seed", IN_THE_DATA[:9])
def test_what_is_saved_when_a_run_is_terminated_is_before_the_window_that_it_cut_short(seed, tmp_path):
    save_and_go_on(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", IN_THE_DATA[9:])
def test_much_that_is_saved_when_a_run_is_terminated_is_before_the_window_that_it_cut_short(seed, tmp_path):
    save_and_go_on(seed, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("seed", SLOW_SEEDS)
def test_many_runs_that_are_terminated_go_on_as_if_they_had_not_been(seed, tmp_path):
    terminate(seed, tmp_path)


@pytest.fixture(scope="module")
def dead(tmp_path_factory):
    folder = tmp_path_factory.mktemp("dead")
    call_alone(die, SEEDS, folder)
    return folder


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("way", WAYS)
def test_a_run_that_is_killed_leaves_whole_files_and_goes_on_as_if_it_had_not_been(way, seed, dead, tmp_path):
    left = dead / way / str(seed)
    assert (left / "status").read_text().startswith("True")
    assert_it_is_as_if_nothing_had_been(seed, left, tmp_path)


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_many_runs_that_are_killed_leave_whole_files_and_go_on_as_if_they_had_not_been(tmp_path):
    call_alone(die, SLOW_SEEDS, tmp_path)
    for way in WAYS:
        for seed in SLOW_SEEDS:
            folder = tmp_path / f"{way} {seed}"
            folder.mkdir()
            assert (tmp_path / way / str(seed) / "status").read_text().startswith("True"), (way, seed)
            assert_it_is_as_if_nothing_had_been(seed, tmp_path / way / str(seed), folder)
