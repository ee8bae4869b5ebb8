# SPDX-License-Identifier: Apache-2.0
"""Outcomes of the study with numbers that a test chooses."""

import math

from lightning_stable.studies.engine.outcome import Outcome, Result
from lightning_stable.studies.engine.study import Trial
from lightning_stable.studies.survival.streams import Stream

CLEAN = Stream(steps=400)
MIXED = Stream("mixed", 0.05, steps=400)
NAN = Stream("nan_embedding", 0.005, steps=400)


def outcome(losses, steps_lost=0.0):
    """`losses` is from (side, stream) to the final losses of seeds 0, 1, ..."""
    results = []
    for (side, stream), values in losses.items():
        for seed, loss in enumerate(values):
            numbers = {"loss": loss, "steps_lost": steps_lost, "seconds_lost": steps_lost / 10, "ended_early": 0.0}
            results.append(Result(Trial(side, stream.point, {}, seed), numbers))
    return Outcome(results, "loss")


def three_sides():
    """AdamW loses a run and more, skipping and the full recipe do not."""
    return outcome(
        {
            ("adamw", CLEAN): [2.0, 2.1],
            ("adamw", MIXED): [2.2, math.nan],
            ("adamw", NAN): [math.nan, math.inf],
            ("guard_skip", CLEAN): [2.0, 2.1],
            ("guard_skip", MIXED): [2.05, 2.13],
            ("guard_skip", NAN): [2.0, 2.12],
            ("guard_rollback", CLEAN): [2.0, 2.1],
            ("guard_rollback", MIXED): [2.05, 2.13],
            ("guard_rollback", NAN): [2.4, 2.52],
            ("full", CLEAN): [2.1, 2.2],
            ("full", MIXED): [2.11, 2.23],
            ("full", NAN): [2.16, 2.26],
        },
        steps_lost=12.0,
    )
