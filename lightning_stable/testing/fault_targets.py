# SPDX-License-Identifier: Apache-2.0
"""Which parameters or which module of a model a fault hits."""

from collections.abc import Collection

from lightning.pytorch import LightningModule
from torch import nn


def target_parameters(pl_module: LightningModule, target: str | None) -> list[nn.Parameter]:
    """The parameters that are trained, or the one that is named."""
    trained = {name: parameter for name, parameter in pl_module.named_parameters() if parameter.requires_grad}
    if target is None:
        return list(trained.values())
    if target not in trained:
        raise ValueError(_no_such("parameter that is trained", target, trained))
    return [trained[target]]


def target_module(pl_module: LightningModule, target: str | None) -> nn.Module:
    """The module that is named, or the first one below `pl_module` that has parameters of its own.

    What `torch.compile` has made sees no hooks that come later, and is hit as a whole.
    """
    modules = {name: module for name, module in pl_module.named_modules() if name}
    if target is None:
        first = (name for name, module in modules.items() if list(module.parameters(recurse=False)))
        return modules.get(next(first, "").partition("._orig_mod")[0], pl_module)
    if target not in modules or "._orig_mod" in target:
        raise ValueError(_no_such("module", target, [name for name in modules if "._orig_mod" not in name]))
    return modules[target]


def _no_such(what: str, target: str, names: Collection[str]) -> str:
    known = ", ".join(map(repr, list(names)[:8])) + (", ..." if len(names) > 8 else "")
    return f"`InjectFault(target=...)` must name a {what}, got {target!r}; there are {known}."
