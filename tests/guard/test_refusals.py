# SPDX-License-Identifier: Apache-2.0
"""What is refused before a run; `test_spike_guard.py` has the rest, in whole runs."""

import pytest

from lightning_stable.guard import Rollback, SpikeGuard
from lightning_stable.guard.ladder import Ladder
from lightning_stable.guard.refusals import check_snapshots


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"snapshot_every": 0}, r"`SpikeGuard\(snapshot_every=...\)` must be at least 1, got 0"),
        ({"snapshots": 0}, r"`SpikeGuard\(snapshots=...\)` must be at least 1 or None, got 0"),
        ({"snapshot_to": "disk"}, r"""`SpikeGuard\(snapshot_to=...\)` must be "device" or "host", got 'disk'"""),
        ({"max_bytes": -1}, r"`SpikeGuard\(max_bytes=...\)` must be at least 0 or None, got -1"),
    ],
)
def test_arguments_that_no_snapshot_can_be_taken_by(arguments, message):
    with pytest.raises(ValueError, match=message):
        SpikeGuard(**arguments)


def test_what_can_work_is_not_refused():
    check_snapshots(1, None, "device", 0, Ladder([Rollback()], forgive_after=None))
