# SPDX-License-Identifier: Apache-2.0
"""The study `survival`. Nothing heavy is imported before a run."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from lightning_stable.studies.engine.outcome import Outcome
from lightning_stable.studies.engine.study import Study, Trial, grid
from lightning_stable.studies.survival.gap_picture import draw_gaps
from lightning_stable.studies.survival.gap_table import survival_table
from lightning_stable.studies.survival.sides import SIDES
from lightning_stable.studies.survival.streams import Stream, streams

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_SLOWER = {"restart": 1.4, "guard_rollback": 1.5}  # they make steps twice


class SurvivalStudy(Study):
    """Who comes through a corrupted stream: a small GPT, streams of several kinds and rates, twelve sides.

    Example:
        >>> study = SurvivalStudy()
        >>> len(study.trials(seeds=(0, 1, 2), quick=False)), len(study.trials(seeds=(0,), quick=True))
        (288, 36)
    """

    name = "survival"
    question = "How far from its clean run does a language model end, if a few of its batches are bad?"
    objective = "loss"
    seeds, quick_seeds = (0, 1, 2), (0,)
    needs = ("matplotlib",)
    version = 2  # 2: the guard skips ten times before it goes back

    def trials(self, seeds: Sequence[int], quick: bool) -> list[Trial]:
        """Every side on every stream, seed by seed, so that a part of the runs is a table, too; nothing is tuned."""
        settings = [stream.point for stream in streams(quick)]
        return [trial for seed in seeds for trial in grid(SIDES, settings, [{}], [seed])]

    def run(self, trial: Trial) -> dict[str, float]:
        """Train once; see `trial.run_one`."""
        from lightning_stable.studies.survival.trial import run_one

        return run_one(trial.side, Stream.of(trial.setting), trial.seed)

    def table(self, outcome: Outcome) -> str:
        """Gaps, final losses, what was lost; see `gap_table`."""
        return survival_table(outcome)

    def draw(self, outcome: Outcome, figure: "Figure") -> None:
        """A dot for each run; see `gap_picture`."""
        draw_gaps(outcome, figure)

    def cost(self, trial: Trial) -> float:
        """Corrupted streams make some sides repeat steps."""
        stream = Stream.of(trial.setting)
        return stream.steps * (1.0 if stream.is_clean else _SLOWER.get(trial.side, 1.0))
