# SPDX-License-Identifier: Apache-2.0
"""The sides of the study as what a run is made of: an optimizer, callbacks, a clip.

No side is tuned. A side that has a recipe `charlm_...` has the detectors and thresholds of that recipe, which were set
on other batches before there was a study; the others have those that were published for them. The learning rate, the
model and how often momentum is reset are the study's own, alike for all: `run_numbers`.
"""

from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from lightning.pytorch import Callback
from torch.optim import Optimizer

from lightning_stable.callbacks import GradientTransforms, MomentumReset
from lightning_stable.detectors import Detector, MedianDeviation
from lightning_stable.guard import Halt, Response, Rollback, SkipStep, SpikeGuard
from lightning_stable.optim import SPAM, StableSPAM
from lightning_stable.studies.survival.run_numbers import reset_interval, reset_warmup
from lightning_stable.studies.survival.sigma_skip import SigmaSkip
from lightning_stable.testbeds import CharLM
from lightning_stable.testbeds.adamw_groups import adamw_groups
from lightning_stable.transforms import AdaptiveGradientClip, ZScoreClip

SNAPSHOT_EVERY = 25  # steps, as in `charlm_stable`
CHECKPOINT_EVERY = SNAPSHOT_EVERY  # of the side that restarts


@dataclass
class Parts:
    """What a side brings to a run.

    Args:
        optimizer: Makes the optimizer of a model.
        callbacks: Of the Trainer, fresh ones.
        clip_norm: `Trainer(gradient_clip_val=...)`.
        restarts: Whether Lightning's `SpikeDetection` watches, and the run begins again where it has raised.

    Example:
        >>> [type(callback).__name__ for callback in parts_of("full", steps=400).callbacks]
        ['SpikeGuard', 'MomentumReset']
    """

    optimizer: Callable[[CharLM], Optimizer] = CharLM.configure_optimizers
    callbacks: list[Callback] = field(default_factory=list)
    clip_norm: float | None = None
    restarts: bool = False


def parts_of(side: str, steps: int) -> Parts:
    """What `side` is made of in a run of so many steps.

    Args:
        side: A name of `sides.SIDES`.
        steps: The length of the run.

    Raises:
        KeyError: If there is no such side.

    Example:
        >>> parts_of("clip", steps=400).clip_norm
        1.0
    """
    return BUILDERS[side](steps)


def _transformed(transform: Callable[[], Any], steps: int) -> Parts:
    return Parts(callbacks=[GradientTransforms([transform()])])


def detectors() -> dict[str, Detector]:
    """What the guards judge by: the detectors of `charlm_stable`.

    Example:
        >>> sorted(detectors())
        ['grad_norm', 'loss']
    """
    return {
        "loss": MedianDeviation(window=32, warmup=16, threshold=8.0, min_rise=0.15),
        "grad_norm": MedianDeviation(window=32, warmup=16, threshold=8.0, min_ratio=4.0),
    }


def _guard(ladder: list[Response] | None = None) -> SpikeGuard:
    return SpikeGuard(detectors(), ladder, snapshot_every=SNAPSHOT_EVERY)


def _guard_skip(steps: int) -> Parts:
    return Parts(callbacks=[_guard([SkipStep(times=steps), Halt()])])


def _guard_rollback(steps: int) -> Parts:
    # what fires again after two replays is in the state and not in the data: only other batches lead away from there
    return Parts(callbacks=[_guard([Rollback("replay", times=2), Rollback("skip", times=steps), Halt()])])


def _guard_rollback_skip(steps: int) -> Parts:
    return Parts(callbacks=[_guard([Rollback("skip", times=steps), Halt()])])


def _full(steps: int) -> Parts:
    reset = MomentumReset(every_n_steps=reset_interval(steps), warmup_steps=reset_warmup(steps))
    return Parts(callbacks=[_guard(), reset])


def _spam(steps: int) -> Parts:
    def optimizer(model: CharLM) -> Optimizer:
        return SPAM(
            adamw_groups(model, model.weight_decay),
            lr=model.lr,
            spike_threshold=20.0,
            reset_interval=reset_interval(steps),
            reset_warmup=reset_warmup(steps),
        )

    return Parts(optimizer)


def _stable_spam(steps: int) -> Parts:
    def optimizer(model: CharLM) -> Optimizer:
        groups = adamw_groups(model, model.weight_decay)
        return StableSPAM(groups, lr=model.lr, reset_interval=reset_interval(steps), total_steps=steps)

    return Parts(optimizer)


BUILDERS: dict[str, Callable[[int], Parts]] = {
    "adamw": lambda steps: Parts(),
    "clip": lambda steps: Parts(clip_norm=1.0),
    "agc": partial(_transformed, AdaptiveGradientClip),
    "z_score_clip": partial(_transformed, ZScoreClip),
    "restart": lambda steps: Parts(restarts=True),
    "sigma_skip": lambda steps: Parts(callbacks=[SigmaSkip()]),
    "spam": _spam,
    "stable_spam": _stable_spam,
    "guard_skip": _guard_skip,
    "guard_rollback": _guard_rollback,
    "guard_rollback_skip": _guard_rollback_skip,
    "full": _full,
}
