# SPDX-License-Identifier: Apache-2.0
"""The learning-rate schedule that a pilot run's gradient norms ask for."""

import json
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from lightning_stable.files import write_atomically
from lightning_stable.schedules.arguments import is_number, require_one_of, require_within

MOST_VALUES = 1000
_NORMS = ("l2", "l1")


def refine(gradient_norms: Sequence[float] | Tensor, norm: str = "l2", filter_width: float = 0.1) -> Tensor:
    """The schedule that is optimal, by a bound on the last iterate, for the gradient norms of a pilot run.

        g: the norms, after a median filter of width filter_width * T (in the pilot's order, one value a step)
        w_t = g_t^-2    (`l2`, for SGD)        w_t = g_t^-1    (`l1`, for Adam)
        schedule_t = w_t * sum of w_p over p > t,    divided by its largest value

    Constant norms give exactly the straight line down; norms that fall and rise again give a warmup and a sharp decay.

    Paper: Defazio, Cutkosky, Mehta and Mishchenko, "When, Why and How Much? Adaptive Learning Rate Scheduling by
    Refinement" (2023).

    Deviations: a run of more than 1,000 steps is first cut into 1,000 parts, each as long as the next, and the median
    of each taken. At the beginning the filter repeats the first value, at the end it sees the norms reflected. Norms
    that are not finite are left out; those that are 0 count as the smallest that is not.

    Args:
        gradient_norms: One norm for each step of the pilot run, before clipping: what `GradientNormRecorder` records.
        norm: Which norm they are: `l2` refines a schedule for SGD, `l1` one for Adam and other methods of signs.
        filter_width: Width of the median filter as a fraction of the run, in [0, 1). Default: the paper's.

    Returns:
        The schedule as float64, between 0 and 1, at equal distances from the first to the last step.

    Raises:
        ValueError: If an argument is out of its bounds, or there are fewer than two norms above 0.

    Example:
        >>> refine([3.0] * 5)
        tensor([1.0000, 0.7500, 0.5000, 0.2500, 0.0000], dtype=torch.float64)
    """
    require_one_of("refine", "norm", norm, _NORMS)
    require_within("refine", "filter_width", filter_width, "[0, 1)")
    norms = _few(_clean(gradient_norms))
    smooth = _median_filter(norms, 2 * (int(filter_width * len(norms)) // 2) + 1)
    ratios = (smooth / smooth.min()).clamp_max(1e100)  # of which no power is 0
    weights = ratios ** (-2.0 if norm == "l2" else -1.0)
    after = torch.cat([weights[1:].flip(0).cumsum(0).flip(0), weights.new_zeros(1)])
    schedule = weights * after
    return schedule / schedule.max()


def save_schedule(path: str | Path, schedule: Tensor, norm: str) -> None:
    """Write a schedule for `Refined`.

    Args:
        path: Of the JSON file.
        schedule: As `refine` returns it.
        norm: Which norms it was made of, for people to read.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     save_schedule(Path(folder, "refined.json"), refine([3.0] * 3), "l2")
        ...     load_schedule(Path(folder, "refined.json"))
        (1.0, 0.5, 0.0)
    """
    content = {"made_by": "lightning_stable refine", "norm": norm, "schedule": [round(x, 9) for x in schedule.tolist()]}
    write_atomically(Path(path), (json.dumps(content) + "\n").encode())


def load_schedule(path: str | Path) -> tuple[float, ...]:
    """Read what `save_schedule` has written.

    Args:
        path: Of the JSON file.

    Raises:
        ValueError: If it is no such file.

    Example:
        >>> load_schedule("no/such/file.json")
        Traceback (most recent call last):
            ...
        ValueError: `Refined(path=...)`: no/such/file.json cannot be read: No such file or directory.
    """
    try:
        content: Any = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise ValueError(f"`Refined(path=...)`: {path} cannot be read: {error.strerror}.") from error
    except (ValueError, RecursionError) as error:
        raise ValueError(f"`Refined(path=...)`: {path} is not JSON: {error}.") from error
    values: Any = content.get("schedule") if isinstance(content, dict) else None
    listed = values if isinstance(values, list) else []
    if len(listed) < 2 or not all(is_number(x) and 0.0 <= x <= 1.0 for x in listed) or max(listed) <= 0.0:
        raise ValueError(
            f"`Refined(path=...)`: {path} has no `schedule`: a list of two or more numbers in [0, 1], not all 0. "
            "`lightning-stable refine RUN_DIR` writes one."
        )
    return tuple(map(float, listed))


def _clean(gradient_norms: Sequence[float] | Tensor) -> Tensor:
    norms = torch.as_tensor(gradient_norms, dtype=torch.float64, device="cpu").detach().flatten()
    if (norms < 0).any():
        raise ValueError(f"`refine(gradient_norms=...)` must not be below 0, got {norms[norms < 0][0].item()}.")
    norms = norms[norms.isfinite()]
    if (norms > 0).sum() < 2:
        raise ValueError(f"`refine(gradient_norms=...)` needs two or more norms above 0, got {(norms > 0).sum()}.")
    return norms.clamp_min(norms[norms > 0].min().item())


def _few(norms: Tensor) -> Tensor:
    """At most `MOST_VALUES`, each the median of its part of the run."""
    if len(norms) <= MOST_VALUES:
        return norms
    return torch.stack([part.quantile(0.5) for part in norms.tensor_split(MOST_VALUES)])


def _median_filter(values: Tensor, width: int) -> Tensor:
    half = width // 2
    if half == 0:
        return values
    before, after = values[:1].expand(half), values[-1 - half : -1].flip(0)
    padded = torch.cat([before, values, after])
    return padded.unfold(0, width, 1).median(dim=1).values


def interpolated(values: Sequence[float], share: float) -> float:
    """The value at a share of the way from the first to the last, on straight lines between neighbours.

    Example:
        >>> interpolated([1.0, 0.5, 0.0], 0.75)
        0.25
    """
    place = share * (len(values) - 1)
    left = min(math.floor(place), len(values) - 2)
    return values[left] + (values[left + 1] - values[left]) * (place - left)
