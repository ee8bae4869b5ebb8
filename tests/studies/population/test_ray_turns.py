# SPDX-License-Identifier: Apache-2.0
"""With Ray itself: what becomes of the others when a member fails."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
_RUN = """
import json, sys, tempfile, time
import ray
from ray import tune
from ray.tune.search.basic_variant import BasicVariantGenerator
from lightning_stable.studies.population.ray_turns import turns_scheduler

ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False, object_store_memory=100_000_000)
fails_after = int(sys.argv[1])

def member(config):
    saved = tune.get_checkpoint()
    done = 0
    if saved is not None:
        with saved.as_directory() as folder:
            done = int(open(folder + "/steps").read())
    for step in range(done + 1, 5):
        if config["lr"] > 0.5 and step > fails_after:
            time.sleep(3)  # so that all others wait for this one
            raise RuntimeError("TrainingHalted")
        with tempfile.TemporaryDirectory() as folder:
            open(folder + "/steps", "w").write(str(step))
            tune.report({"loss": -config["lr"], "steps": step}, checkpoint=tune.Checkpoint.from_directory(folder))

scheduler = turns_scheduler(
    time_attr="steps", perturbation_interval=1, hyperparam_mutations={"lr": tune.uniform(0, 0.5)},
    quantile_fraction=0.25, custom_explore_fn=lambda config: {"lr": min(config["lr"], 0.5)},
)
rates = [{"lr": 0.1}, {"lr": 0.9}, {"lr": 0.2}]
tuner = tune.Tuner(
    tune.with_resources(member, {"cpu": 0.5}), param_space={"lr": tune.uniform(0, 1)},
    tune_config=tune.TuneConfig(metric="loss", mode="min", scheduler=scheduler, num_samples=3, reuse_actors=True,
                                search_alg=BasicVariantGenerator(points_to_evaluate=rates)),
    run_config=tune.RunConfig(name="members", storage_path=sys.argv[2], verbose=0),
)
print(json.dumps([[one.error is not None, one.metrics.get("steps"), one.metrics.get("done")] for one in tuner.fit()]))
ray.shutdown()
"""


@pytest.mark.slow
@pytest.mark.timeout(300)
@pytest.mark.parametrize("fails_after", [0, 1])
def test_the_others_go_on_when_the_last_of_a_turn_fails(tmp_path, fails_after):
    pytest.importorskip("ray.tune")
    done = subprocess.run(
        [sys.executable, "-c", _RUN, str(fails_after), str(tmp_path)],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "RAY_TMPDIR": "/tmp",
             "RAY_USAGE_STATS_ENABLED": "0"},
        capture_output=True,
        text=True,
        timeout=240,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    first, failed, third = json.loads(done.stdout.splitlines()[-1])
    assert first == third == [False, 4, True]
    assert failed[:2] == [True, fails_after or None]
