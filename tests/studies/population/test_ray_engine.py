# SPDX-License-Identifier: Apache-2.0
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from lightning_stable.callbacks.population.lineage import read_schedule
from lightning_stable.studies.population.ray_engine import NotForRay, _say, read_config, split_config
from lightning_stable.studies.population.ray_member import STEPS
from lightning_stable.studies.recipes import find_recipe
from tests.small_fit import LIGHTNING_CLI_WARNS

ROOT = Path(__file__).parents[3]
SEARCH = {
    "search": {"lr": [0.01, 0.1]},
    "choices": None,
    "population": 4,
    "interval": 10,
    "monitor": "val_loss",
    "mode": "min",
    "fraction": 0.25,
    "initial": None,
    "seed": 3,
}


def config(callbacks=None, **trainer):
    search = {"class_path": "lightning_stable.callbacks.PopulationBasedTraining", "init_args": SEARCH}
    others = [{"class_path": "lightning_stable.monitors.GradientNormMonitor"}]
    return {
        "trainer": {"callbacks": [*others, search] if callbacks is None else callbacks, "max_steps": 403, **trainer}
    }


def test_the_search_is_read_from_the_recipe_and_a_member_takes_its_part_of_the_steps():
    whole = config()
    settings, member = split_config(whole)
    assert (settings.population, settings.interval, settings.seed) == (4, 10, 3)
    assert settings.space.names == ["lr"]
    assert member["trainer"]["max_steps"] == 100
    assert member["trainer"]["enable_checkpointing"]
    assert [one["class_path"].rpartition(".")[2] for one in member["trainer"]["callbacks"]] == ["GradientNormMonitor"]
    assert whole == config()


def test_what_is_no_population_is_refused():
    with pytest.raises(NotForRay, match=r"a recipe with one `PopulationBasedTraining`.*got 0"):
        split_config(config(callbacks=[]))
    with pytest.raises(NotForRay, match=r"needs `--trainer\.max_steps`.*got -1"):
        split_config(config(max_steps=-1))
    with pytest.raises(NotForRay, match="got 3"):
        split_config(config(max_steps=3))
    plain = {"class_path": "PopulationBasedTraining", "init_args": {**SEARCH, "search": None}}
    with pytest.raises(NotForRay, match="set `search` or `choices`"):
        split_config(config(callbacks=[plain]))


def test_members_without_a_single_turn_are_refused():
    with pytest.raises(
        NotForRay, match=r"`--trainer\.max_steps=39` for a `population` of 4 is 9 steps a member.* 10;.* 40"
    ):
        split_config(config(max_steps=39))
    assert split_config(config(max_steps=40))[1]["trainer"]["max_steps"] == 10


class Results(list):
    """As Ray's `ResultGrid`."""

    @property
    def errors(self):
        return [one.error for one in self if one.error is not None]


def result(steps, done, error=None):
    metrics = {"val_loss": 0.5, STEPS: steps, "done": done} if steps else None
    return SimpleNamespace(metrics=metrics, error=error, checkpoint=None)


def said_of(results, folder):
    settings, _ = split_config(config())
    return _say(Results(results), settings, folder)


def test_of_a_search_that_was_broken_off_no_best_is_kept(tmp_path, capsys):
    assert said_of([result(100, True), result(90, False)], tmp_path) == 130
    captured = capsys.readouterr()
    assert "broken off: 1 of 2 members came to their end" in captured.err
    assert "The best" not in captured.out
    assert not list(tmp_path.iterdir())


def test_that_no_turn_has_ended_is_said(tmp_path, capsys):
    assert said_of([result(None, False, error=RuntimeError("no"))], tmp_path) == 1
    captured = capsys.readouterr()
    assert "a member failed: no" in captured.err
    assert "no member has ended a turn" in captured.err


@pytest.mark.filterwarnings(LIGHTNING_CLI_WARNS)
def test_the_bundled_recipe_serves_both_engines_with_what_is_said_beside_it():
    from lightning_stable.cli import _import_rooms

    _import_rooms()
    said = read_config([f"--config={find_recipe('digits_pbt').path}", "--trainer.callbacks.population=4"])
    settings, member = split_config(said)
    assert settings.population == 4
    assert member["trainer"]["max_steps"] * 4 == said["trainer"]["max_steps"]


@pytest.mark.filterwarnings(LIGHTNING_CLI_WARNS)
def test_a_wrong_command_line_is_an_error_of_the_parser(capsys):
    with pytest.raises(SystemExit) as stop:
        read_config(["--trainer.max_steps=soon"])
    assert stop.value.code == 2


@pytest.mark.slow
@pytest.mark.timeout(300)
def test_ctrl_c_is_no_end_of_a_search(tmp_path):
    pytest.importorskip("ray.tune")
    command = subprocess.Popen(
        [sys.executable, "-m", "lightning_stable.cli", "fit", "--recipe=digits_pbt", "--engine=ray",
         "--trainer.callbacks.population=2", "--trainer.accelerator=cpu", "--trainer.max_steps=1000000"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_TMPDIR": "/tmp"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )  # fmt: skip
    folder = tmp_path / "runs" / "digits_pbt" / "ray_0"
    try:
        end = time.monotonic() + 200
        while not list(folder.glob("*/checkpoint_*")) and time.monotonic() < end:
            time.sleep(0.5)
        command.send_signal(signal.SIGINT)
        out, err = command.communicate(timeout=90)
    finally:
        command.kill()
    assert command.returncode == 130, err
    assert "broken off: 0 of 2 members" in err
    assert "The best" not in out
    assert not (folder / "best.ckpt").exists()


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ray_trains_the_recipe_and_leaves_no_process_behind(tmp_path):
    pytest.importorskip("ray")
    smaller = ("--trainer.callbacks.population=2", "--trainer.callbacks.interval=4", "--trainer.val_check_interval=4")
    short = ("--trainer.max_steps=16", "--trainer.accelerator=cpu", "--trainer.callbacks.fraction=0.5")
    done = subprocess.run(
        [sys.executable, "-m", "lightning_stable.cli", "fit", "--recipe=digits_pbt", "--engine=ray", *smaller, *short],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_TMPDIR": "/tmp"},
        capture_output=True,
        text=True,
        timeout=880,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    folder = tmp_path / "runs" / "digits_pbt" / "ray_0"
    steps = [step for step, _ in read_schedule(folder / "schedule.json")]
    assert set(steps) <= {0, 4}
    checkpoint = torch.load(folder / "best.ckpt", weights_only=True)
    assert checkpoint["global_step"] == 8
    assert "The best came to val_loss" in done.stdout
    left = [path for path in Path("/proc").glob("[0-9]*/environ") if str(tmp_path).encode() in _read(path)]
    assert not left


def _read(path):
    try:
        return path.read_bytes()
    except OSError:
        return b""
