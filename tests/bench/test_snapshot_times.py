# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.bench.snapshot_times import snapshot_times


def test_each_round_has_a_snapshot_a_copy_and_a_way_back():
    times = snapshot_times(2e4, rounds=4)
    assert len(times.snapshot) == len(times.copy) == len(times.restore) == 4
    assert min(times.snapshot + times.copy + times.restore) > 0.0
    assert times.megabytes == pytest.approx(12 * 2e4 / 1e6, rel=0.3)  # weights and two moments
