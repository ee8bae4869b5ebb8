# SPDX-License-Identifier: Apache-2.0
"""Random faults on one rank of two, or on both: nothing hangs, both do the same, and it is as if it had not been.

With `test_schedules.py` that makes 72 random schedules in `make test`, 32 of them here, and 344 more among the slow
tests, 104 of them here; beside them 80 that are not random, 124 runs that are resumed,
and 78 on two ranks that a signal has ended.
"""

from functools import partial

import pytest
import torch

from tests.chaos.chaotic_ranks import SETTINGS, setting_of, survive
from tests.distributed.processes import of_both, on_two_ranks

SEEDS, SLOW_SEEDS = range(32), [range(start, start + 26) for start in (4000, 4026, 4052, 4078)]


def assert_both_did_the_same(results, name):
    one, other = of_both(results, name)
    assert one["incidents"] == other["incidents"]
    assert one["end"] == other["end"]
    assert one["weights"].keys() == other["weights"].keys()
    for weight, value in one["weights"].items():
        assert value.isfinite().all(), weight
        assert torch.equal(value, other["weights"][weight]), weight


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    return on_two_ranks({f"{seed}": partial(survive, seed) for seed in SEEDS}, tmp_path_factory.mktemp("chaos"))


@pytest.mark.parametrize("seed", SEEDS)
def test_a_random_schedule_is_survived_by_both(seed, ranks):
    assert_both_did_the_same(ranks, f"{seed}")


def test_schedules_hit_one_rank_and_both_in_every_setting(ranks):
    assert {setting_of(seed) for seed in SEEDS} == set(SETTINGS)
    hit = {rank for seed in SEEDS for rank in ranks[f"{seed}"][0]["hit"]}
    assert hit == {0, 1, None}


@pytest.mark.slow
@pytest.mark.parametrize("seeds", SLOW_SEEDS, ids=lambda seeds: f"{seeds[0]}-{seeds[-1]}")
def test_many_random_schedules_are_survived_by_both(seeds, tmp_path):
    results = on_two_ranks({f"{seed}": partial(survive, seed) for seed in seeds}, tmp_path)
    for seed in seeds:
        assert_both_did_the_same(results, f"{seed}")
