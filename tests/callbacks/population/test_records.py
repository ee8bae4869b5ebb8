# SPDX-License-Identifier: Apache-2.0
import builtins
import json

import pytest
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_stable.callbacks.population.lineage import Lineage, Turn, read_schedule
from lightning_stable.callbacks.population.records import Records, save_again
from lightning_stable.callbacks.population.settings import Settings
from tests.callbacks.populations import Net, fit

SETTINGS = Settings(2, 5, {"lr": [0.1, 1.0]}, {}, [], "val_loss", "min", 0.2, 0)
LINEAGE = Lineage([Turn(0, 0, 0, 5, 5, {"lr": 0.5}, 0.1), Turn(0, 1, 0, 5, 10, {"lr": 0.2}, None)], [])


def test_the_files_say_all(tmp_path):
    records = Records(str(tmp_path), SETTINGS)
    records.write(LINEAGE, 0)
    records.draw(LINEAGE, 0)
    record = json.loads((tmp_path / "pbt.json").read_text())
    assert record["best"] == 0
    assert record["settings"]["ranges"] == {"lr": [0.1, 1.0]}
    assert [turn["score"] for turn in record["turns"]] == [0.1, None]
    assert read_schedule(tmp_path / "schedule.json") == [(0, {"lr": 0.5})]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pbt.json", "pbt.png", "schedule.json"]


def test_without_a_best_there_is_a_lineage_only(tmp_path):
    records = Records(str(tmp_path), SETTINGS)
    records.write(LINEAGE, None)
    records.draw(LINEAGE, None)
    assert [path.name for path in tmp_path.iterdir()] == ["pbt.json"]


@pytest.mark.parametrize("what", ["write", "draw"])
def test_what_cannot_be_written_is_said_once_and_no_reason_to_stop(tmp_path, what):
    (tmp_path / "file").touch()
    records = Records(str(tmp_path / "file"), SETTINGS)
    with pytest.warns(UserWarning, match="cannot write to .*file .*The run goes on"):
        getattr(records, what)(LINEAGE, 0)
    records.write(LINEAGE, 0)
    records.draw(LINEAGE, 0)


def test_without_matplotlib_there_is_no_picture(tmp_path, monkeypatch):
    real = builtins.__import__

    def without(name, *arguments, **options):
        if name.endswith("lineage_picture"):
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    Records(str(tmp_path), SETTINGS).draw(LINEAGE, 0)
    assert not list(tmp_path.iterdir())


def test_saving_again_keeps_to_what_is_the_latest(tmp_path):
    latest = ModelCheckpoint(tmp_path / "latest", every_n_train_steps=2)
    best = ModelCheckpoint(tmp_path / "best", monitor="train_loss", every_n_train_steps=2)
    _, trainer = fit(None, Net(), callbacks=[latest, best], enable_checkpointing=True, max_steps=4)
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.ckpt")}
    save_again(trainer)
    changed = {path.parent.name for path, time in before.items() if path.stat().st_mtime_ns != time}
    assert changed == {"latest"}
    assert set(tmp_path.rglob("*.ckpt")) == set(before)
