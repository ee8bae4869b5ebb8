# SPDX-License-Identifier: Apache-2.0
"""How a detector refuses an argument."""

from typing import Any


def require(detector: str, argument: str, value: Any, holds: bool, allowed: str) -> None:
    """Raise if an argument is not what is allowed.

    Args:
        detector: The class, as its user wrote it.
        argument: Its name.
        value: What it was.
        holds: Whether it may be that.
        allowed: What it may be, in words.

    Raises:
        ValueError: If it does not hold.

    Example:
        >>> require("ZScore", "window", 1, holds=False, allowed="at least 2")
        Traceback (most recent call last):
        ValueError: `ZScore(window=...)` must be at least 2, got 1.
    """
    if not holds:
        raise ValueError(f"`{detector}({argument}=...)` must be {allowed}, got {value!r}.")


def require_rebaseline(detector: str, rebaseline: float | None) -> None:
    """Raise if a share of anomalies that are a new level is none.

    Args:
        detector: The class, as its user wrote it.
        rebaseline: Its argument of that name.

    Raises:
        ValueError: If it is neither a share nor `None`.

    Example:
        >>> require_rebaseline("ZScore", 25.0)
        Traceback (most recent call last):
        ValueError: `ZScore(rebaseline=...)` must be above 0 and at most 1, or `None`, got 25.0.
    """
    known = rebaseline is None or 0 < rebaseline <= 1
    require(detector, "rebaseline", rebaseline, known, "above 0 and at most 1, or `None`")
