# SPDX-License-Identifier: Apache-2.0
"""The factor on the learning rate after a momentum reset."""

import math
from typing import Literal


def rewarmup(step: int, warmup_steps: int = 150, shape: Literal["cosine", "linear"] = "cosine") -> float:
    """Rise from 0.01 to 1 in the `warmup_steps` steps after a momentum reset.

        cosine:  1 - 0.99 * (1 + cos(pi * k / (warmup_steps + 1))) / 2
        linear:  0.01 + 0.99 * k / warmup_steps
        both:    1 for k >= warmup_steps

    Paper: Huang et al., "SPAM: Spike-Aware Adam with Momentum Reset for Stable LLM Training" (ICLR 2025), cosine.

    Deviations: `linear` is ours.

    Args:
        step: Optimizer steps since the reset, k; 0 for the step that the reset precedes.
        warmup_steps: Steps until the factor is 1 again. Default: SPAM's 150.
        shape: The curve.

    Raises:
        ValueError: If `step` or `warmup_steps` is negative or `shape` is unknown.

    Example:
        >>> [round(rewarmup(k, warmup_steps=4), 3) for k in (0, 1, 2, 3, 4)]
        [0.01, 0.105, 0.352, 0.658, 1.0]
        >>> [round(rewarmup(k, warmup_steps=4, shape="linear"), 4) for k in (0, 2, 4)]
        [0.01, 0.505, 1.0]
    """
    if step < 0:
        raise ValueError(f"`rewarmup(step=...)` must be at least 0, got {step}.")
    if warmup_steps < 0:
        raise ValueError(f"`rewarmup(warmup_steps=...)` must be at least 0, got {warmup_steps}.")
    if shape not in ("cosine", "linear"):
        raise ValueError(f'`rewarmup(shape=...)` must be "cosine" or "linear", got {shape!r}.')
    if step >= warmup_steps:
        return 1.0
    if shape == "linear":
        return 0.01 + 0.99 * step / warmup_steps
    return 1.0 - 0.99 * (1.0 + math.cos(math.pi * step / (warmup_steps + 1))) / 2.0
