# SPDX-License-Identifier: Apache-2.0
"""Say what is wrong with an argument: the call, the bound, the value."""

from collections.abc import Iterable


def require_at_least(owner: str, bound: int, **arguments: int | None) -> None:
    """Raise a ValueError that names the first argument of `owner` below `bound`; None passes.

    Example:
        >>> require_at_least("GPT", 1, n_layer=0)
        Traceback (most recent call last):
            ...
        ValueError: `GPT(n_layer=...)` must be at least 1, got 0.
    """
    for name, value in arguments.items():
        if value is not None and value < bound:
            raise ValueError(f"`{owner}({name}=...)` must be at least {bound}, got {value}.")


def require_one_of(owner: str, known: Iterable[str], **arguments: str) -> None:
    """Raise a ValueError that names the first argument of `owner` that is not in `known`.

    Example:
        >>> require_one_of("GPT", ["pre", "post"], norm_placement="sandwich")
        Traceback (most recent call last):
            ...
        ValueError: `GPT(norm_placement=...)` must be one of 'pre', 'post', got 'sandwich'.
    """
    names = tuple(known)
    for name, value in arguments.items():
        if value not in names:
            raise ValueError(f"`{owner}({name}=...)` must be one of {', '.join(map(repr, names))}, got {value!r}.")


def require_dropout(owner: str, dropout: float) -> None:
    """Raise a ValueError if `dropout` is no chance below 1.

    Example:
        >>> require_dropout("GPT", 1.0)
        Traceback (most recent call last):
            ...
        ValueError: `GPT(dropout=...)` must be in [0, 1), got 1.0.
    """
    if not 0.0 <= dropout < 1.0:
        raise ValueError(f"`{owner}(dropout=...)` must be in [0, 1), got {dropout}.")
