# SPDX-License-Identifier: Apache-2.0
"""`lightning-stable fit --engine`: what trains a population."""

import pytest

from lightning_stable import cli
from lightning_stable.cli import main
from tests.small_fit import LIGHTNING_CLI_WARNS


def test_an_engine_that_is_none_is_exit_status_2(capsys):
    assert main(["fit", "--recipe", "digits_pbt", "--engine=cluster"]) == 2
    assert "`--engine` is one of local, ray, got 'cluster'" in capsys.readouterr().err
    assert main(["fit", "--engine"]) == 2
    assert "got ''" in capsys.readouterr().err


def test_the_engine_may_stand_anywhere(monkeypatch):
    seen = []
    monkeypatch.setattr(cli, "_lightning", lambda command, arguments: seen.append(arguments) or 0)
    monkeypatch.setattr(cli, "_fit_with_ray", lambda arguments: seen.append(["ray", *arguments]) or 0)
    assert main(["fit", "--engine", "ray", "--recipe", "x"]) == 0
    assert main(["fit", "--recipe", "x", "--engine=ray"]) == 0
    assert main(["fit", "--recipe", "x", "--engine", "local", "--trainer.max_steps=3"]) == 0
    ray = ["ray", "--recipe", "x"]
    assert seen == [ray, ray, ["--recipe", "x", "--trainer.max_steps=3"]]


def test_a_missing_ray_is_named_with_its_extra(monkeypatch, capsys):
    def needs_ray(_):
        raise ModuleNotFoundError("No module named 'ray'", name="ray")

    monkeypatch.setattr(cli, "_fit_with_ray", needs_ray)
    assert main(["fit", "--recipe", "digits_pbt", "--engine", "ray"]) == 2
    assert "this needs ray: pip install 'lightning-stable[ray]'" in capsys.readouterr().err


@pytest.mark.filterwarnings(LIGHTNING_CLI_WARNS)
def test_ray_needs_a_population(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert main(["fit", "--recipe", "digits_sam", "--engine", "ray"]) == 2
    assert "`--engine ray` needs a recipe with one `PopulationBasedTraining`" in capsys.readouterr().err
