# SPDX-License-Identifier: Apache-2.0
"""What every recipe owes: a header, a reason for every number, and that it starts."""

import re
from itertools import takewhile
from pathlib import Path

import pytest
import yaml

from lightning_stable.cli import main
from lightning_stable.studies.recipes import list_recipes
from tests.small_fit import LIGHTNING_CLI_WARNS

FOLDER = Path(__file__).parents[1] / "recipes"
RECIPES = sorted(FOLDER.glob("*.yaml"))
NUMBER = re.compile(r"(?<![\w.])-?\d")

each = pytest.mark.parametrize("path", RECIPES, ids=lambda path: path.stem)


def load(name):
    return yaml.safe_load(next(path for path in RECIPES if path.stem == name).read_text())


def test_there_are_recipes_and_all_of_them_are_listed(capsys):
    assert {"charlm_adamw", "charlm_stable"} <= {path.stem for path in RECIPES}
    assert [recipe.path.name for recipe in list_recipes()] == [path.name for path in RECIPES]
    assert len({path.stem for path in RECIPES}) == len(RECIPES)
    assert main(["list"]) == 0
    out = capsys.readouterr().out
    assert all(f"{path.stem} " in out for path in RECIPES)


@each
def test_the_header_says_what_it_shows_needs_and_takes(path):
    header = [line for line in takewhile(lambda line: line.startswith("#"), path.read_text().splitlines())]
    for line, key in zip(header, ("shows", "needs", "takes"), strict=False):
        assert re.fullmatch(rf"# {key}: \S.*", line), line
    assert any(line.startswith("# Look at in TensorBoard:") for line in header)


@each
def test_every_number_has_its_reason(path):
    for line in path.read_text().splitlines():
        said, _, reason = line.partition("#")
        if NUMBER.search(said):
            assert reason.strip(), f"{path.name}: {line.strip()!r} needs a comment that says why"


@each
def test_lines_are_short_and_indented_as_yaml_is_here(path):
    for line in path.read_text().splitlines():
        assert len(line) <= 120
        assert line == line.rstrip()
        assert "\t" not in line


@each
def test_it_can_be_repeated_and_logs_under_its_own_name(path):
    recipe = yaml.safe_load(path.read_text())
    assert isinstance(recipe["seed_everything"], int)
    assert recipe["trainer"]["logger"]["init_args"]["save_dir"] == "runs"
    assert recipe["trainer"]["logger"]["init_args"]["name"] == path.stem
    assert {recipe["trainer"].get("max_epochs"), recipe["trainer"].get("max_steps")} != {None}


@each
@pytest.mark.filterwarnings(LIGHTNING_CLI_WARNS)
@pytest.mark.filterwarnings("ignore:.*the run ends inside the warmup")
def test_it_starts_and_takes_two_steps(path, tmp_path, monkeypatch):
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.chdir(tmp_path)
    shorter = ("--trainer.max_steps=2", "--trainer.limit_val_batches=1", "--trainer.enable_progress_bar=false")
    assert main(["fit", "--recipe", path.stem, *shorter, "--trainer.accelerator=cpu"]) == 0
    logs = tmp_path / "runs" / path.stem / "version_0"
    assert (logs / "config.yaml").is_file()
    assert list(logs.glob("events.out.tfevents.*"))


def test_the_two_runs_that_are_compared_differ_in_nothing_but_the_protection():
    lost, kept = load("charlm_adamw"), load("charlm_stable")
    for same in ("seed_everything", "model", "data"):
        assert lost[same] == kept[same]
    for trainer in (lost["trainer"], kept["trainer"]):
        del trainer["callbacks"], trainer["logger"]
    assert lost["trainer"] == kept["trainer"]
    assert kept.keys() - lost.keys() == {"lr_scheduler"}
