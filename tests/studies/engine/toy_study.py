# SPDX-License-Identifier: Apache-2.0
"""A study whose runs take no time, unless they are held: a parabola for each side."""

import os
import signal
import sys
import time
from pathlib import Path

from lightning_stable.studies.engine.study import Study, grid

FOLDER = "TOY_STUDY_FOLDER"
"""An environment variable: where runs leave a line each, and look for files that hold them."""
PATH = f"{__name__}:ToyStudy"
NARROW, WIDE = 2.0, 0.5


class ToyStudy(Study):
    name, question, objective = "toy", "Which parabola is lower?", "loss"
    seeds = (0, 1, 2)

    def trials(self, seeds, quick):
        settings = [{"noise": noise} for noise in ((0.0,) if quick else (0.0, 0.1))]
        return grid(["narrow", "wide"], settings, [{"x": x} for x in (-1.0, 0.25, 1.0)], seeds)

    def run(self, trial):
        folder = Path(os.environ[FOLDER])
        with (folder / "begun").open("a") as log:
            log.write(f"{os.getpid()} {trial.key}\n")
        sys.stdout.write("said by a run\n")
        while (folder / "hold").exists():
            time.sleep(0.005)
        if (folder / "fail").exists() and trial.tuning["x"] == 1.0:
            raise RuntimeError("told to fail | \x1b[31mred")
        if (folder / "die").exists() and trial.tuning["x"] == 1.0:
            os.kill(os.getpid(), signal.SIGKILL)
        with (folder / "made").open("a") as log:
            log.write(f"{trial.key}\n")
        steepness = NARROW if trial.side == "narrow" else WIDE
        noise = trial.setting["noise"] * (trial.seed - 1)
        return {"loss": steepness * trial.tuning["x"] ** 2 + noise, "pid": os.getpid()}

    def table(self, outcome):
        means = [f"{side} {outcome.cell(side, outcome.settings[0]).mean('loss')}" for side in outcome.sides]
        return f"Means: {', '.join(means)}"

    def draw(self, outcome, figure):
        figure.subplots().bar(
            outcome.sides, [outcome.cell(side, {"noise": 0.0}).mean("loss") for side in outcome.sides]
        )


class UnequalStudy(ToyStudy):
    def trials(self, seeds, quick):
        return super().trials(seeds, quick)[: -len(seeds)]


class NeedyStudy(ToyStudy):
    needs = ("no_such_module",)


class FittingStudy(ToyStudy):
    """Runs that are a `fit` of Lightning's; if there is a file `terminate`, SIGTERM comes to one of them in it."""

    def trials(self, seeds, quick):
        return grid(["narrow", "wide"], [{"noise": 0.0}], [{"x": 1.0}], seeds)

    def run(self, trial):
        from tests.studies.engine.terminated_fit import fit

        fit(Path(os.environ[FOLDER], "terminate"))
        return super().run(trial)
