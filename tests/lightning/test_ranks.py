# SPDX-License-Identifier: Apache-2.0
"""In real processes: `tests/distributed/test_faults.py`, and every resume there."""

from types import SimpleNamespace

from lightning_stable._lightning.ranks import of_all_ranks


def test_one_process_has_what_it_knows():
    assert of_all_ranks(SimpleNamespace(world_size=1), {"a": 1}) == [{"a": 1}]
