# SPDX-License-Identifier: Apache-2.0
"""Check an optimizer's arguments, and say what is wrong in the words of the call."""

from collections.abc import Mapping
from typing import Any


def require_rates(call: str, group: Mapping[str, Any], **more: float) -> None:
    """Refuse a parameter group whose `lr`, `betas`, `eps` or `weight_decay`, as far as it has them, make no sense.

    Args:
        call: Name of the optimizer, as the user wrote it.
        group: The parameter group, defaults filled in.
        **more: Further arguments that must be at least 0.

    Raises:
        ValueError: If one is negative, not a number, or a beta is not below 1.

    Example:
        >>> require_rates("SPAM", {"lr": -1.0})
        Traceback (most recent call last):
        ...
        ValueError: `SPAM(lr=...)` must be at least 0, got -1.0.
    """
    values = {name: group[name] for name in ("lr", "eps", "weight_decay") if name in group} | more
    for name, value in values.items():
        if not float(value) >= 0.0:  # NaN too
            raise ValueError(f"`{call}({name}=...)` must be at least 0, got {float(value)}.")
    betas = group.get("betas", ())
    for beta in betas:
        require_fraction(call, betas=beta)


def require_fraction(call: str, **values: float) -> None:
    """Refuse a decay rate outside [0, 1).

    Args:
        call: Name of the optimizer, as the user wrote it.
        **values: The arguments by name.

    Raises:
        ValueError: If one is negative, 1 or more, or not a number.

    Example:
        >>> require_fraction("StableSPAM", theta=1.0)
        Traceback (most recent call last):
        ...
        ValueError: `StableSPAM(theta=...)` must be at least 0 and less than 1, got 1.0.
    """
    for name, value in values.items():
        if not 0.0 <= float(value) < 1.0:
            raise ValueError(f"`{call}({name}=...)` must be at least 0 and less than 1, got {float(value)}.")


def require_steps(call: str, at_least: int, **values: int | None) -> None:
    """Refuse a number of steps below its bound; `None`, where an argument may be left out, is let through.

    Args:
        call: Name of the optimizer, as the user wrote it.
        at_least: The bound.
        **values: The arguments by name.

    Raises:
        ValueError: If one is less than the bound.

    Example:
        >>> require_steps("SPAM", 1, reset_interval=0)
        Traceback (most recent call last):
        ...
        ValueError: `SPAM(reset_interval=...)` must be at least 1, got 0.
    """
    for name, value in values.items():
        if value is not None and not value >= at_least:
            raise ValueError(f"`{call}({name}=...)` must be at least {at_least}, got {value}.")
