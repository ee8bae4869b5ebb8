# SPDX-License-Identifier: Apache-2.0
"""A signal to one rank of two, or to both: nothing hangs, and what is left goes on as if nothing had been.

SIGTERM lets all ranks finish the same step, wherever they are when it comes, and ends `fit` on all of them with
`SIGTERMException`; after SIGKILL the other rank is told by its next collective.
"""

import json
import signal

import pytest

from tests.chaos.alone import call_alone
from tests.chaos.interrupted_ranks import PLACES, TERMINATED, WAYS, end_and_go_on, setting_of

SEEDS, SLOW_SEEDS = range(6), [range(start, start + 36) for start in (8000, 8036)]


def assert_nothing_is_lost(seed, folder):
    statuses = json.loads((folder / str(seed) / "statuses").read_text())
    errors = [path.read_text() for path in folder.glob(f"{seed}/go_on.*.error")]
    assert statuses["go_on"] == [0, 0], "\n".join(errors)
    number, ranks = WAYS[setting_of(seed).way]
    if number == signal.SIGTERM:
        assert statuses["end"] == [TERMINATED, TERMINATED]
    else:
        assert -number in [statuses["end"][rank] for rank in ranks]
        assert set(statuses["end"]) <= {-number, 1}  # of two that are to be killed, one may be told before


@pytest.fixture(scope="module")
def ended(tmp_path_factory):
    folder = tmp_path_factory.mktemp("ended")
    call_alone(end_and_go_on, SEEDS, folder)
    return folder


@pytest.mark.parametrize("seed", SEEDS)
def test_ranks_that_a_signal_ends_go_on_as_if_it_had_not_been(seed, ended):
    assert_nothing_is_lost(seed, ended)


def test_signals_come_in_every_way_in_every_wrap_and_among_the_slow_tests_at_every_place():
    settings = [setting_of(seed) for seed in SEEDS]
    assert {setting.way for setting in settings} == set(WAYS)
    assert {setting.wrap for setting in settings} == {"copies", "shards", "shards, one file"}
    settings = [setting_of(seed) for seeds in SLOW_SEEDS for seed in seeds]
    assert {place for setting in settings for place in setting.places} == set(PLACES)
    assert {setting.ladder for setting in settings} == {"skip", "replay"}


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("seeds", SLOW_SEEDS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_many_ranks_that_a_signal_ends_go_on_as_if_it_had_not_been(seeds, tmp_path):
    call_alone(end_and_go_on, seeds, tmp_path, timeout=500)
    for seed in seeds:
        assert_nothing_is_lost(seed, tmp_path)
