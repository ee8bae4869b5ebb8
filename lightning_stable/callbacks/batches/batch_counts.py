# SPDX-License-Identifier: Apache-2.0
"""How many samples or tokens a batch has."""

import dataclasses
from collections.abc import Iterator, Mapping
from enum import Enum
from typing import Any

import torch
from torch import Tensor


def count_samples(batch: Any, key: str | None = None) -> int | None:
    """Return the length of the first axis of the first tensor in a batch; `None` if there is no tensor with axes.

    Args:
        batch: Nested mappings, lists, tuples, dataclasses and objects with attributes; searched in their order.
        key: A key, index or attribute, or several joined by dots, of the tensor or container to look at.

    Raises:
        KeyError: If there is nothing of that name.

    Example:
        >>> count_samples({"id": 3, "pixels": torch.zeros(8, 1, 4, 4), "targets": torch.zeros(8)})
        8
    """
    for tensor in _tensors(_at(batch, key)):
        if tensor.ndim:
            return len(tensor)
    return None


def count_tokens(batch: Any, key: str | None = None) -> int | None:
    """Return how many tokens a batch has; `None` if that is not to be seen.

    With `key` they are the entries of the first integer tensor there. Without, the first tensor with axes must be
    [samples, length] of integers or [samples, length, features] of any kind: samples times length. Padding counts.

    Args:
        batch: As in `count_samples`.
        key: As in `count_samples`.

    Raises:
        KeyError: If there is nothing of that name.

    Example:
        >>> ids, mask = torch.zeros(8, 16, dtype=torch.int64), torch.ones(8, 16)
        >>> count_tokens((ids, mask)), count_tokens({"mask": mask, "input_ids": ids}, key="input_ids")
        (128, 128)
    """
    tensors = [tensor for tensor in _tensors(_at(batch, key)) if tensor.ndim]
    if key is not None:
        integers = [tensor for tensor in tensors if not (tensor.is_floating_point() or tensor.is_complex())]
        return integers[0].numel() if integers else None
    if not tensors:
        return None
    first = tensors[0]
    is_tokens = first.ndim == 2 and not (first.is_floating_point() or first.is_complex() or first.dtype == torch.bool)
    return first.shape[0] * first.shape[1] if is_tokens or first.ndim == 3 else None


def _at(batch: Any, key: str | None) -> Any:
    for name in [] if key is None else key.split("."):
        children = _children(batch)
        if name not in children:
            there = ", ".join(map(repr, children)) or f"only {type(batch).__name__}"
            raise KeyError(f"there is no {name!r} in the batch, but {there}")
        batch = children[name]
    return batch


def _tensors(value: Any, seen: dict[int, Any] | None = None) -> Iterator[Tensor]:
    if isinstance(value, Tensor):
        yield value
        return
    seen = {} if seen is None else seen
    if id(value) in seen:  # an object may hold itself
        return
    seen[id(value)] = value  # as long as it is kept, no other has its id
    for child in _children(value).values():
        yield from _tensors(child, seen)


def _children(value: Any) -> dict[str, Any]:
    """What is in a container, by name; nothing is in a text, a number, a tensor, a class or a member of an `Enum`."""
    if isinstance(value, Tensor | str | bytes | type | Enum):
        return {}
    if isinstance(value, Mapping):
        return {str(key): item for key, item in value.items()}
    if hasattr(value, "_fields"):
        return {**{str(index): item for index, item in enumerate(value)}, **value._asdict()}
    if isinstance(value, list | tuple):
        return {str(index): item for index, item in enumerate(value)}
    if dataclasses.is_dataclass(value):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    data = getattr(value, "data", None)  # HuggingFace's BatchEncoding is no Mapping, but holds one
    if isinstance(data, Mapping):
        return _children(data)
    return dict(getattr(value, "__dict__", {}))
