# SPDX-License-Identifier: Apache-2.0
"""Bounds of arguments, in the words of the call that the user wrote."""

import math
from numbers import Integral, Real
from typing import Any


def is_number(value: Any) -> bool:
    """Whether it is a real number that is finite, NumPy's included; True and False are no numbers here.

    Example:
        >>> is_number(3), is_number(float("nan")), is_number(True), is_number("3")
        (True, False, False, False)
    """
    return isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value)


def plain_number(value: Any) -> int | float:
    """The same number as an int if its type is one of whole numbers, and as a float if not: what checkpoints may hold.

    Example:
        >>> from fractions import Fraction
        >>> plain_number(3), plain_number(Fraction(1, 4))
        (3, 0.25)
    """
    return int(value) if isinstance(value, Integral) else float(value)


def number_text(value: float) -> str:
    """A number for a message: whole ones whole, others to six digits.

    Example:
        >>> number_text(1_234_567), number_text(2e9), number_text(1 / 3)
        ('1234567', '2000000000', '0.333333')
    """
    return str(int(value)) if value == int(value) else f"{value:g}"


def require_within(call: str, name: str, value: Any, bounds: str) -> float:
    """Return `value` as a float, which must be a number in an interval such as `(0, 1]`.

    Raises:
        ValueError: If it is not.

    Example:
        >>> require_within("REX", "beta", 0.5, "(0, 1]")
        0.5
        >>> require_within("REX", "beta", 2, "(0, 1]")
        Traceback (most recent call last):
            ...
        ValueError: `REX(beta=...)` must be a number in (0, 1], got 2.
    """
    low, high = (float(text) for text in bounds[1:-1].split(","))
    above = is_number(value) and (value > low or (bounds[0] == "[" and value == low))
    below = is_number(value) and (value < high or (bounds[-1] == "]" and value == high))
    if not (above and below):
        raise ValueError(f"`{call}({name}=...)` must be a number in {bounds}, got {value!r}.")
    return float(value)


def require_positive(call: str, name: str, value: Any) -> float:
    """Return `value` as a float, which must be a number above 0.

    Raises:
        ValueError: If it is not.

    Example:
        >>> require_positive("Polynomial", "power", 2.0)
        2.0
    """
    if not is_number(value) or value <= 0:
        raise ValueError(f"`{call}({name}=...)` must be a number above 0, got {value!r}.")
    return float(value)


def require_one_of(call: str, name: str, value: Any, allowed: tuple[str, ...]) -> str:
    """Return `value`, which must be one of the texts that are allowed.

    Raises:
        ValueError: If it is not.

    Example:
        >>> require_one_of("WSD", "decay", "linear", ("linear", "1-sqrt"))
        'linear'
    """
    if value not in allowed:
        raise ValueError(f"`{call}({name}=...)` must be one of {', '.join(map(repr, allowed))}, got {value!r}.")
    return value
