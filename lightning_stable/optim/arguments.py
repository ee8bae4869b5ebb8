# SPDX-License-Identifier: Apache-2.0
"""Check an optimizer's arguments, and say what is wrong in the words of the call."""

from collections.abc import Mapping, Sequence
from typing import Any


def require_rates(call: str, group: Mapping[str, Any], **more: float) -> None:
    """Refuse a parameter group whose `lr`, `betas`, `eps` or `weight_decay`, as far as it has them, make no sense.

    Args:
        call: Name of the optimizer, as the user wrote it.
        group: The parameter group, defaults filled in.
        **more: Further arguments that must be at least 0.

    Raises:
        ValueError: If one is negative or NaN, a beta is not below 1, or `betas` are not two.
        TypeError: If one is no number.

    Example:
        >>> require_rates("SPAM", {"lr": -1.0})
        Traceback (most recent call last):
        ...
        ValueError: `SPAM(lr=...)` must be at least 0, got -1.0.
    """
    values = {name: group[name] for name in ("lr", "eps", "weight_decay") if name in group} | more
    for name, value in values.items():
        if not _number(call, name, value) >= 0.0:  # NaN too
            raise ValueError(f"`{call}({name}=...)` must be at least 0, got {float(value)}.")
    if "betas" not in group:
        return
    if not isinstance(group["betas"], Sequence) or len(group["betas"]) != 2:
        raise ValueError(f"`{call}(betas=...)` must be two numbers, got {group['betas']!r}.")
    for beta in group["betas"]:
        require_fraction(call, betas=beta)


def require_fraction(call: str, **values: float) -> None:
    """Refuse a decay rate outside [0, 1).

    Args:
        call: Name of the optimizer, as the user wrote it.
        **values: The arguments by name.

    Raises:
        ValueError: If one is negative, 1 or more, or NaN.
        TypeError: If one is no number.

    Example:
        >>> require_fraction("StableSPAM", theta=1.0)
        Traceback (most recent call last):
        ...
        ValueError: `StableSPAM(theta=...)` must be at least 0 and less than 1, got 1.0.
    """
    for name, value in values.items():
        if not 0.0 <= _number(call, name, value) < 1.0:
            raise ValueError(f"`{call}({name}=...)` must be at least 0 and less than 1, got {float(value)}.")


def require_steps(call: str, at_least: int, **values: int | None) -> None:
    """Refuse a number of steps below its bound; `None`, where an argument may be left out, is let through.

    Args:
        call: Name of the optimizer, as the user wrote it.
        at_least: The bound.
        **values: The arguments by name.

    Raises:
        ValueError: If one is less than the bound.
        TypeError: If one is no whole number.

    Example:
        >>> require_steps("SPAM", 1, reset_interval=0)
        Traceback (most recent call last):
        ...
        ValueError: `SPAM(reset_interval=...)` must be at least 1, got 0.
    """
    for name, value in values.items():
        if value is None:
            continue
        if not _number(call, name, value) >= at_least:  # NaN too
            raise ValueError(f"`{call}({name}=...)` must be at least {at_least}, got {value}.")
        if value != int(value):
            raise TypeError(f"`{call}({name}=...)` must be a whole number, got {value!r}.")


def _number(call: str, name: str, value: Any) -> float:
    try:
        return float(value)
    except (TypeError, ValueError) as error:
        raise TypeError(f"`{call}({name}=...)` must be a number, got {value!r}.") from error
