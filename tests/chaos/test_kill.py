# SPDX-License-Identifier: Apache-2.0
"""The demo, made small, ended by SIGTERM or SIGKILL and resumed: as if it had not been."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import yaml

from lightning_stable.studies.recipes import find_recipe
from tests.faulty_runs import assert_same

ROOT = Path(__file__).parents[2]
BAD = [5, 45, 46, 75]  # of 3 epochs of 40 batches


def write_config(folder, num_workers):
    config = yaml.safe_load(find_recipe("charlm_stable").path.read_text(encoding="utf-8"))
    config["model"]["init_args"] = {"n_layer": 1, "n_head": 2, "d_model": 16, "context": 8, "lr": 0.003}
    config["data"]["init_args"] = {
        "context": 8,
        "batch_size": 2,
        "batches_per_epoch": 40,
        "val_batches": 2,
        "num_workers": num_workers,
        "corrupt": [{"kind": "nan_embedding", "batches": BAD}],
    }
    guard, reset, entropy, checkpoint = config["trainer"]["callbacks"]
    guard["init_args"] = {"snapshot_every": 7}
    reset["init_args"] = {"every_n_steps": 30, "warmup_steps": 10}
    entropy["init_args"] = {"every_n_steps": 9}
    checkpoint["init_args"]["every_n_train_steps"] = 10
    config["lr_scheduler"]["init_args"]["warmup_steps"] = 12
    config["trainer"].update(max_epochs=3, accelerator="cpu", enable_progress_bar=False)
    (folder / "config.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")


def fit(folder, name, *arguments, status=0):
    """Train in a process of its own, which ends with `status`."""
    where = ["--trainer.logger.init_args.name", name, "--trainer.logger.init_args.version", "0"]
    command = [sys.executable, "-m", "lightning_stable.cli", "fit", "--config", "config.yaml", *where, *arguments]
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}  # this package, whatever else is installed
    done = subprocess.run(command, cwd=folder, text=True, capture_output=True, timeout=120, env=environment)
    assert done.returncode == status, done.stdout + done.stderr


def what_is_left(folder, name):
    """All that a run knows at its end, but for the time it took."""
    run = folder / "runs" / name / "version_0"
    checkpoint = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    guard = checkpoint["callbacks"]["SpikeGuard"]
    incidents = [json.loads(line) for line in (run / "incidents.jsonl").read_text().splitlines()]
    del guard["resumed"]["updates"]  # measured after each snapshot, and a resume begins with a new one
    for incident in (*guard["journal"]["incidents"], *incidents):
        del incident["time"], incident["seconds_lost"]
    parts = ("epoch", "global_step", "state_dict", "optimizer_states", "lr_schedulers")
    return {part: checkpoint[part] for part in parts} | {"guard": guard, "incidents": incidents}


@pytest.mark.parametrize(
    ("kind", "status", "num_workers"),
    [pytest.param("terminate", 143, 0, marks=pytest.mark.slow), ("kill", -signal.SIGKILL, 2)],
)
def test_a_killed_demo_resumes_to_the_same_end_with_the_guards_whole_history(tmp_path, kind, status, num_workers):
    write_config(tmp_path, num_workers)
    fit(tmp_path, "whole")
    kill = ["--trainer.callbacks+=InjectFault", f"--trainer.callbacks.kind={kind}", "--trainer.callbacks.step=47"]
    fit(tmp_path, "killed", *kill, status=status)
    fit(tmp_path, "resumed", "--ckpt_path", "runs/killed/version_0/checkpoints/last.ckpt")

    expected = what_is_left(tmp_path, "whole")
    assert expected["global_step"] > 90
    # there may be others: what Python's own sources hold, of which the text is made, is not for us to say
    assert {incident["step"] for incident in expected["incidents"]} >= set(BAD)
    assert_same(what_is_left(tmp_path, "resumed"), expected)
