# SPDX-License-Identifier: Apache-2.0
"""Make the optimizer that another one wraps, from plain arguments."""

import inspect
from importlib import import_module
from typing import Any

from torch import Tensor
from torch.optim import Optimizer
from torch.optim.optimizer import ParamsT

from lightning_stable.optim.arguments import require_rates


def base_optimizer(
    call: str,
    params: ParamsT,
    kind: str | type[Optimizer],
    lr: float | Tensor,
    weight_decay: float | None = None,
    arguments: dict[str, Any] | None = None,
) -> Optimizer:
    """Return a new optimizer to be wrapped, or say what is wrong in the words of the wrapper's call.

    Args:
        call: Name of the wrapper, whose arguments are `params`, `base_optimizer`, `lr`, `weight_decay`, `base_args`.
        params: Parameters, or groups of them.
        kind: Dotted name of the optimizer's class, or the class.
        lr: Learning rate.
        weight_decay: Weight decay; `None` for the optimizer's own default.
        arguments: Further arguments of the optimizer.

    Raises:
        ValueError: If there are no parameters, `kind` leads to no optimizer, to one that cannot step without a closure,
            or to one that does not take the arguments.

    Example:
        >>> import torch
        >>> parameter = torch.nn.Parameter(torch.ones(2))
        >>> base = base_optimizer("SAM", [parameter], "torch.optim.SGD", lr=0.1, arguments={"momentum": 0.9})
        >>> base.param_groups[0]["momentum"]
        0.9
    """
    groups = params if isinstance(params, Tensor) else list(params)
    if not isinstance(groups, Tensor) and not groups:
        raise ValueError(f"`{call}(params=...)` must hold at least one parameter, got none.")
    require_rates(call, {"lr": lr, "weight_decay": weight_decay or 0.0})
    found: Any = _found(call, kind)
    _require_no_closure(call, found)
    return found(groups, lr=lr, **_checked(call, found, weight_decay, arguments or {}))


def _found(call: str, name: str | type[Optimizer]) -> type[Optimizer]:
    found = name
    if isinstance(name, str):
        module, _, attribute = name.rpartition(".")
        try:
            found = getattr(import_module(module), attribute)
        except (ImportError, AttributeError, ValueError) as error:
            raise ValueError(
                f'`{call}(base_optimizer=...)` must be the dotted name of a class, such as "torch.optim.AdamW", '
                f"got {name!r}, which cannot be found: {error}."
            ) from error
    if not (isinstance(found, type) and issubclass(found, Optimizer)):
        raise ValueError(f"`{call}(base_optimizer=...)` must be a class derived from Optimizer, got {name!r}.")
    return found


def _require_no_closure(call: str, kind: type[Optimizer]) -> None:
    closure = inspect.signature(kind.step).parameters.get("closure")
    demands_it = closure is not None and closure.default is inspect.Parameter.empty
    if demands_it or getattr(kind, "needs_closure", False):
        raise ValueError(
            f"`{call}(base_optimizer=...)` must be an optimizer that steps without a closure, got {kind.__name__}, "
            "which calls it by itself."
        )


def _checked(call: str, kind: type[Optimizer], weight_decay: float | None, arguments: dict[str, Any]) -> dict[str, Any]:
    """The optimizer's arguments, after a check that it takes them."""
    known = inspect.signature(kind).parameters
    takes_any = any(each.kind is inspect.Parameter.VAR_KEYWORD for each in known.values())
    for name in arguments:
        if name in ("params", "lr", "weight_decay"):
            raise ValueError(
                f"`{call}(base_args=...)` must not hold {name!r}, which is an argument of `{call}` itself."
            )
        if name not in known and not takes_any:
            raise ValueError(f"`{call}(base_args=...)` must hold arguments of {kind.__name__}, got {name!r}.")
    if weight_decay is None or (weight_decay == 0 and "weight_decay" not in known):
        return arguments
    if "weight_decay" not in known and not takes_any:
        raise ValueError(
            f"`{call}(weight_decay=...)` must be 0 or `None` with {kind.__name__}, which has none, got {weight_decay}."
        )
    return {**arguments, "weight_decay": weight_decay}
