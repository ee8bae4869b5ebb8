# SPDX-License-Identifier: Apache-2.0
"""Decay the matrices, leave norms and biases alone."""

from typing import Any

from torch import nn


def adamw_groups(module: nn.Module, weight_decay: float) -> list[dict[str, Any]]:
    """Return two parameter groups: what has two or more axes with `weight_decay`, the rest with none.

    Args:
        module: Its parameters that need a gradient are grouped.
        weight_decay: Decay of weights and embeddings.

    Example:
        >>> groups = adamw_groups(nn.Linear(3, 2), weight_decay=0.1)
        >>> [(group["weight_decay"], [tuple(p.shape) for p in group["params"]]) for group in groups]
        [(0.1, [(2, 3)]), (0.0, [(2,)])]
    """
    trained = [parameter for parameter in module.parameters() if parameter.requires_grad]
    matrices = [parameter for parameter in trained if parameter.ndim >= 2]
    rest = [parameter for parameter in trained if parameter.ndim < 2]
    groups = [{"params": matrices, "weight_decay": weight_decay}, {"params": rest, "weight_decay": 0.0}]
    return [group for group in groups if group["params"]]
