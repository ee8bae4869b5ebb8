# SPDX-License-Identifier: Apache-2.0
"""In real processes: `tests/distributed/test_faults.py` and `test_batches.py`, and every resume there."""

from types import SimpleNamespace

from lightning_stable._lightning.ranks import of_all_ranks, sum_over_ranks


def test_one_process_has_what_it_knows():
    assert of_all_ranks(SimpleNamespace(world_size=1), {"a": 1}) == [{"a": 1}]


def test_one_process_adds_up_what_it_has():
    assert sum_over_ranks(SimpleNamespace(world_size=1), [1, 2.5]) == [1.0, 2.5]
