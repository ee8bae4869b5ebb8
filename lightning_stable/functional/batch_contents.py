# SPDX-License-Identifier: Apache-2.0
"""Batches are any nesting of containers: change tensors in one without touching it."""

import copy
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor


def replace_tensors(
    batch: Any,
    replace: Callable[[Tensor], Tensor],
    place: str | None = None,
    argument: str = "replace_tensors(place=...)",
) -> Any:
    """A batch in which `replace` was applied to every tensor, or to those at one place; the old one stays as it is.

    Args:
        batch: Nested dictionaries, lists, tuples, named tuples, dataclasses and objects.
        replace: Returns the new tensor.
        place: Keys, indices or attributes, joined by dots: `"targets"`, `"1"`, `"views.0.mask"`. None is all of it.
        argument: Where the user wrote the place, for the error message.

    Raises:
        ValueError: If there is no such place.

    Example:
        >>> import torch
        >>> batch = {"x": torch.ones(1), "pair": (torch.ones(1), torch.ones(1))}
        >>> replace_tensors(batch, lambda tensor: 2 * tensor, place="pair.1")
        {'x': tensor([1.]), 'pair': (tensor([1.]), tensor([2.]))}
    """
    if place is None:
        return apply_to_collection(batch, Tensor, replace)
    return _replace_at(batch, place.split("."), replace, place, argument)


def _replace_at(container: Any, path: list[str], replace: Callable[[Tensor], Tensor], place: str, argument: str) -> Any:
    if not path:
        return apply_to_collection(container, Tensor, replace)
    names = _names(container)
    if path[0] not in names:
        there = ", ".join(map(repr, names)) or f"only {type(container).__name__}"
        raise ValueError(
            f"`{argument}` must name a place in the batch, got {place!r}; where it looked for "
            f"{path[0]!r} there is {there}."
        )
    key = names[path[0]]
    if isinstance(container, Mapping | list | tuple):
        new = _replace_at(container[key], path[1:], replace, place, argument)
    else:
        new = _replace_at(getattr(container, key), path[1:], replace, place, argument)
    return _with_item(container, key, new)


def _names(container: Any) -> dict[str, Any]:
    """What can follow in a path, and the key, index or attribute it stands for."""
    if isinstance(container, Mapping):
        return {str(key): key for key in container}
    if isinstance(container, list | tuple):
        indices = {str(index): index for index in range(len(container))}
        return indices | {name: index for index, name in enumerate(getattr(container, "_fields", ()))}
    return {} if isinstance(container, Tensor) else {name: name for name in getattr(container, "__dict__", {})}


def _with_item(container: Any, key: Any, value: Any) -> Any:
    if isinstance(container, tuple):
        items = [*container[:key], value, *container[key + 1 :]]
        return type(container)(*items) if hasattr(container, "_fields") else type(container)(items)
    if dataclasses.is_dataclass(container) and not isinstance(container, type):
        return dataclasses.replace(container, **{key: value})
    new: Any = copy.copy(container)
    if isinstance(container, Mapping | list):
        new[key] = value
    else:
        setattr(new, key, value)
    return new
