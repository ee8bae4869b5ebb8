# SPDX-License-Identifier: Apache-2.0
"""The table of `lightning-stable bench guard`, of times that are made up."""

import json

import pytest

from lightning_stable.bench import guard
from lightning_stable.bench.overhead import BARE, GUARD
from lightning_stable.bench.snapshot_times import SnapshotTimes


@pytest.fixture(autouse=True)
def made_up(monkeypatch):
    times = SnapshotTimes(592.0, snapshot=[0.11] * 3, restore=[0.13] * 3, copy=[0.1] * 3)
    monkeypatch.setattr(guard, "seconds_per_step", lambda runs, rounds: {BARE: [1.0] * 3, GUARD: [1.05] * 3})
    monkeypatch.setattr(guard, "snapshot_times", lambda size, rounds: times)
    monkeypatch.setattr(guard, "rollback_times", lambda rounds: [0.01, 0.02, 0.03])
    monkeypatch.setattr(guard, "restart_times", lambda rounds: [4.0, 5.0, 90.0])


def test_what_is_promised_is_compared_with_what_was_measured(tmp_path, capsys):
    assert guard.main(["--rounds", "3", "--json", str(tmp_path / "out.json")]) == 0
    step, snapshot, restore, rollback = capsys.readouterr().out.splitlines()[1:]
    assert step.endswith("x 1.050 [1.050, 1.050] of the bare Trainer's  <= 1.040  over")
    assert snapshot.startswith("  a snapshot of 592 MB")
    assert snapshot.endswith("x 1.100 [1.100, 1.100] of a plain copy  <= 1.500  ok")
    assert restore.endswith("x 1.300 [1.300, 1.300] of the same")
    assert rollback.endswith("x 0.00400 [0.00200, 0.00600] of a restart from a checkpoint, 5.0 s  <= 0.050  ok")
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [row["most"] for row in rows] == [1.04, 1.5, None, 0.05]
