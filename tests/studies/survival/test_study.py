# SPDX-License-Identifier: Apache-2.0
import subprocess
import sys

import pytest

from lightning_stable.studies.engine.equal_tuning import require_equal_tuning, tuning_budget
from lightning_stable.studies.engine.study import Trial
from lightning_stable.studies.study_command import STUDIES
from lightning_stable.studies.survival import trial as trial_module
from lightning_stable.studies.survival.sides import SIDES
from lightning_stable.studies.survival.streams import Stream
from lightning_stable.studies.survival.study import SurvivalStudy
from tests.studies.survival.outcomes import three_sides


@pytest.mark.parametrize("quick", [False, True])
def test_nobody_is_tuned_and_all_meet_the_same(quick):
    study = SurvivalStudy()
    trials = study.trials(study.quick_seeds if quick else study.seeds, quick)
    require_equal_tuning(study.name, trials)
    assert "1 point (nothing is tuned)" in tuning_budget(trials)
    assert {trial.side for trial in trials} == set(SIDES)


def test_every_side_has_its_clean_runs():
    trials = SurvivalStudy().trials((0, 1), quick=True)
    clean = {(trial.side, trial.seed) for trial in trials if Stream.of(trial.setting).is_clean}
    assert clean == {(side, seed) for side in SIDES for seed in (0, 1)}


def test_seed_by_seed_so_that_a_part_is_a_table_too():
    seeds = [trial.seed for trial in SurvivalStudy().trials((0, 1, 2), quick=False)]
    assert seeds == sorted(seeds)


def test_a_run_is_of_the_trial(monkeypatch):
    monkeypatch.setattr(trial_module, "run_one", lambda *arguments: arguments)
    stream = Stream("mixed", 0.05, 8, steps=40)
    assert SurvivalStudy().run(Trial("clip", stream.point, {}, seed=3)) == ("clip", stream, 3)


def test_steps_that_are_made_twice_cost_more():
    cost = {side: SurvivalStudy().cost(Trial(side, Stream("mixed", 0.05).point)) for side in ("adamw", "restart")}
    assert cost["adamw"] == 400.0 < cost["restart"]


def test_table_and_picture_are_those_of_the_room():
    figure = pytest.importorskip("matplotlib.figure").Figure()
    study = SurvivalStudy()
    study.draw(three_sides(), figure)
    assert len(figure.axes) == 2
    assert study.table(three_sides()).startswith("One epoch of 400 batches")


def test_it_is_known_to_the_command_and_imports_nothing_heavy():
    module, name = STUDIES["survival"].split(":")
    assert (module, name) == (SurvivalStudy.__module__, SurvivalStudy.__name__)
    code = f"import sys, {module}; print({{'torch', 'lightning', 'matplotlib'}} & set(sys.modules))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout == "set()\n", done.stderr
