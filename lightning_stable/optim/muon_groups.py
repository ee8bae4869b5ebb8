# SPDX-License-Identifier: Apache-2.0
"""The parameter groups of an optimizer that orthogonalises hidden matrices and leaves the rest to AdamW."""

from typing import Any

from torch import nn

from lightning_stable.parameters import Patterns, parameter_roles

_HIDDEN = ("matrix", "scale-invariant")


def muon_groups(module: nn.Module, *, head: Patterns | None = None) -> list[dict[str, Any]]:
    """Group a module's parameters for `pytorch_optimizer.Muon` and its like, which bring an AdamW of their own.

        use_muon=True                     weights of hidden linear, convolution and recurrent layers
        use_muon=False                    embeddings and the head
        use_muon=False, weight_decay=0    norms, biases and vectors

    Paper: Jordan et al., "Muon: An optimizer for hidden layers in neural networks" (2024).

    Deviations: none. A matrix in which query, key and value lie stacked counts as one. `torch.optim.Muon` has no AdamW
    and takes the first group's `params` alone, where they have two axes.

    Args:
        module: Its parameters that are trained are grouped, each once; frozen ones are left out.
        head: As in `parameters.parameter_roles`: what is the head, where its rules do not find it.

    Returns:
        Up to three groups with `params` and `use_muon`, and `weight_decay` in the last; none is empty.

    Raises:
        ValueError: If no hidden matrix is trained, or `head` fits nothing.

    Example:
        >>> model = nn.Sequential(nn.Embedding(9, 4), nn.Linear(4, 6), nn.LayerNorm(6), nn.Linear(6, 9, bias=False))
        >>> for group in muon_groups(model):
        ...     print(group["use_muon"], group.get("weight_decay"), [tuple(one.shape) for one in group["params"]])
        True None [(6, 4)]
        False None [(9, 4), (9, 6)]
        False 0.0 [(6,), (6,), (6,)]
    """
    roles = parameter_roles(module, head)
    hidden, outer, spared = [], [], []
    for name, parameter in module.named_parameters():
        if not parameter.requires_grad:
            continue
        if roles[name] in _HIDDEN and parameter.ndim > 1:
            hidden.append(parameter)
        else:
            (outer if roles[name] in ("embedding", "head", *_HIDDEN) else spared).append(parameter)
    if not hidden:
        raise ValueError(
            "`muon_groups(module=...)` must be one in which a weight is trained that is neither embedding nor head, "
            f"got {type(module).__name__}."
        )
    groups: list[dict[str, Any]] = [{"params": hidden, "use_muon": True}, {"params": outer, "use_muon": False}]
    groups.append({"params": spared, "use_muon": False, "weight_decay": 0.0})
    return [group for group in groups if group["params"]]
