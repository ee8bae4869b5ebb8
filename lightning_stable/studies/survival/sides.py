# SPDX-License-Identifier: Apache-2.0
"""The sides of the study, in words; `parts` builds them. No torch here."""

from dataclasses import dataclass


@dataclass(frozen=True)
class Side:
    """Who is compared.

    Args:
        name: As the storage and `results.csv` have it.
        title: As the table and the picture have it.
        what: What it is made of, and where its thresholds are from; what all sides share is in `run_numbers`.

    Example:
        >>> SIDES["adamw"].title
        'AdamW'
    """

    name: str
    title: str
    what: str


_RECIPE = "with the thresholds of the recipe"
_ALL = (
    Side(
        "adamw",
        "AdamW",
        "betas 0.9 and 0.95, weight decay 0.1, as in the recipe `charlm_adamw`; all sides but SPAM and Stable-SPAM "
        "stand on it",
    ),
    Side("clip", "AdamW + global clip", "`Trainer(gradient_clip_val=1.0)`"),
    Side("agc", "AdamW + AGC", "`AdaptiveGradientClip()`: 0.01 of a unit's weights, the head left out"),
    Side("z_score_clip", "AdamW + ZScoreClip", "`ZScoreClip()`: z 2.5, alpha 0.97, warm-up 25 steps"),
    Side(
        "restart",
        "SpikeDetection + restart",
        "Lightning's `SpikeDetection()`; after its exception a new `fit` from the last checkpoint, written every 25 "
        "steps, without the batches that it names",
    ),
    Side(
        "sigma_skip",
        "6-sigma skip (OLMo)",
        "steps left out where loss or gradient norm is 6 standard deviations above the mean of the last 128; from the "
        "64th step on",
    ),
    Side("spam", "SPAM", f"{_RECIPE} `charlm_spam`: threshold 20"),
    Side("stable_spam", "Stable-SPAM", f"{_RECIPE} `charlm_stable_spam`: gammas 0.7 and 0.9"),
    Side(
        "guard_skip",
        "SpikeGuard, skip",
        "`ladder=[SkipStep, Halt]`, as often as it takes; detectors of the recipe `charlm_stable`",
    ),
    Side(
        "guard_rollback",
        "SpikeGuard, rollback",
        '`ladder=[Rollback("replay", times=2), Rollback("skip"), Halt]`, the same detectors, a snapshot every 25 '
        "steps; the good batches since then are run again, unless that has not helped twice",
    ),
    Side(
        "guard_rollback_skip",
        "SpikeGuard, rollback, no replay",
        '`ladder=[Rollback("skip"), Halt]`, the same otherwise; the batches since the snapshot are lost',
    ),
    Side(
        "full",
        "full recipe",
        "`SpikeGuard` with the detectors of the recipe `charlm_stable` and the guard's own ladder: ten skips, two "
        "rollbacks without replay, two halvings of the learning rate, a halt; and `MomentumReset`",
    ),
)
SIDES = {side.name: side for side in _ALL}

FULL, SKIP, ROLLBACK = "full", "guard_skip", "guard_rollback"
"""The sides that the table says most of."""
