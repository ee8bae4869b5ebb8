# SPDX-License-Identifier: Apache-2.0
"""The reflected-exponential (REX) curve.

    rex(x) = (1 - x) / ((1 - beta) + beta * (1 - x)),    x in [0, 1]

Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training with an Improved Schedule" (MLSys 2022).
"""

from typing import overload

import torch


@overload
def rex(progress: float, beta: float = 0.5) -> float: ...
@overload
def rex(progress: torch.Tensor, beta: float = 0.5) -> torch.Tensor: ...
def rex(progress: float | torch.Tensor, beta: float = 0.5) -> float | torch.Tensor:
    """Fall from 1 to 0, slowly at first and steeply at the end.

        rex(x) = z / ((1 - beta) + beta * z),    z = 1 - x

    Paper: Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training with an Improved Schedule" (MLSys 2022).

    Deviations: the paper has beta = 0.5 alone. `beta=0` is the straight line; `beta=0.9` is what the authors' later
    code uses, a longer plateau; `beta=1` stays at 1 until the end. Progress outside of [0, 1] is clamped, so that the
    curve never comes back.

    Args:
        progress: The fraction of the run that is done; a number, or a tensor of any shape.
        beta: How long the plateau is, in [0, 1]. Default: the paper's 0.5.

    Raises:
        ValueError: If `beta` is not in [0, 1].

    Example:
        >>> [round(rex(x), 3) for x in (0.0, 0.25, 0.5, 0.75, 1.0)]
        [1.0, 0.857, 0.667, 0.4, 0.0]
        >>> rex(torch.tensor([0.0, 0.5, 1.0]), beta=0.0)
        tensor([1.0000, 0.5000, 0.0000])
    """
    if not 0.0 <= beta <= 1.0:
        raise ValueError(f"`rex(beta=...)` must be in [0, 1], got {beta}.")
    if isinstance(progress, torch.Tensor):
        remaining = 1.0 - progress.clamp(0.0, 1.0)
        return torch.where(remaining == 0.0, remaining, remaining / ((1.0 - beta) + beta * remaining))
    remaining = 1.0 - min(max(progress, 0.0), 1.0)
    return 0.0 if remaining == 0.0 else remaining / ((1.0 - beta) + beta * remaining)
