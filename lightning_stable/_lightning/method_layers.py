# SPDX-License-Identifier: Apache-2.0
"""Stand in for a method of one object, several at a time, and step aside in any order."""

import functools
from collections.abc import Callable
from contextlib import ExitStack
from typing import Any


def layer_over(undo: ExitStack, owner: Any, name: str, layer: Callable[..., Any]) -> None:
    """Have `layer(method, *args)` called instead of the owner's method, until `undo` is closed.

    All layers over one method share one replacement on the instance, so that each can go before the others; the last
    one's going brings back what was there.

    Example:
        >>> class Greeter:
        ...     def greet(self, name):
        ...         return f"hello {name}"
        >>> greeter = Greeter()
        >>> with ExitStack() as undo:
        ...     layer_over(undo, greeter, "greet", lambda greet, name: greet(name).upper())
        ...     greeter.greet("you")
        'HELLO YOU'
        >>> greeter.greet("you")
        'hello you'
    """
    attributes = vars(owner)
    found = attributes.get(name)
    replacement = found if hasattr(found, "own_layers") else _replacement(getattr(owner, name), found)
    attributes[name] = replacement
    replacement.own_layers.append(layer)

    def step_aside() -> None:
        replacement.own_layers.remove(layer)
        if not replacement.own_layers:
            del attributes[name]
            attributes.update({} if replacement.found is None else {name: replacement.found})

    undo.callback(step_aside)


def _replacement(method: Callable[..., Any], found: Any) -> Any:
    @functools.wraps(method)  # Lightning looks at the names of the arguments
    def replacement(*args: Any, **kwargs: Any) -> Any:
        call = method
        for layer in attributes.own_layers:
            call = functools.partial(layer, call)
        return call(*args, **kwargs)

    attributes: Any = replacement
    attributes.own_layers, attributes.found = [], found
    return replacement
