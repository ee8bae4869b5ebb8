# SPDX-License-Identifier: Apache-2.0
"""What a step changes of an object's plain attributes: counters, lists, generators, tensors that are no buffers."""

import copy
import math
import random
from collections import Counter, OrderedDict, defaultdict, deque
from collections.abc import Callable, Collection, Iterable
from datetime import datetime, timedelta
from enum import Enum
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, FunctionType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

_OF_A_MODULE = vars(nn.Module()).keys() - {"training"}  # its parameters, buffers, children and hooks
_SEQUENCES = (list, deque)
_CONTAINERS = (*_SEQUENCES, dict, OrderedDict, defaultdict, Counter, set)  # others may mean something else by `clear`
_GENERATORS = (torch.Generator, np.random.Generator, np.random.RandomState, random.Random)
_NUMBERS_AND_WORDS = (type(None), bool, int, float, complex, str, bytes, np.generic, torch.dtype, torch.device)
_VALUES = (*_NUMBERS_AND_WORDS, Enum, PurePath, datetime, timedelta, type, FunctionType, BuiltinFunctionType)
_PLAIN = (*_VALUES, *_GENERATORS, Tensor, np.ndarray)
_FRAMEWORKS = ("torch", "lightning", "lightning_stable")  # whose objects are put back by who knows them, if at all


class PlainAttributes:
    """The plain attributes of an object, and what is within them.

    That are tensors, arrays and random generators, and lists, deques, tuples, dictionaries and sets, each within the
    other to any depth. Objects of other classes are put back with their attributes if these are nothing but such, as
    those of a meter are. Not put back is what is in any other object: one that can be called, that holds a lock, a
    file or a module, or whose class is derived from a container or from one of torch or Lightning. Parameters are the
    snapshot's.

    Args:
        owner: Of any class that keeps its attributes in `__dict__`.
        leave: Names of attributes that are somebody else's to put back.
        below: Tensors and arrays of so many bytes, or more, are not copied, and stay as they are then.

    Example:
        >>> from types import SimpleNamespace
        >>> owner = SimpleNamespace(count=1, seen={"a": [0.5]})
        >>> kept = PlainAttributes(owner)
        >>> owner.count, owner.new = 2, True
        >>> owner.seen["a"].append(0.25)
        >>> kept.put_back()
        >>> owner
        namespace(count=1, seen={'a': [0.5]})
    """

    def __init__(self, owner: Any, leave: Collection[str] = (), below: float = math.inf) -> None:
        self._owner = vars(owner)
        self._leave = leave
        self._found = {name: self._owner[name] for name in self._names()}
        self._contents = _Contents(self._found.values(), below)

    def put_back(self) -> None:
        """As they were when this was made; attributes that were born since are gone."""
        for name in self._names():
            if name not in self._found:
                del self._owner[name]
        self._owner.update(self._found)
        self._contents.put_back()

    def _names(self) -> list[str]:
        # what stands in for a method is somebody else's to take away
        return [name for name, value in self._owner.items() if name not in self._leave and not callable(value)]


def plain_attributes(module: nn.Module) -> list[PlainAttributes]:
    """Those of a module and of all within it; parameters, buffers and hooks are not among them.

    Example:
        >>> module = nn.Dropout(0.5)
        >>> (kept,) = plain_attributes(module)
        >>> module.p = 0.1
        >>> kept.put_back()
        >>> module.p
        0.5
    """
    return [PlainAttributes(child, leave=_OF_A_MODULE) for child in module.modules()]


class _Contents:
    """What is within values, each object once: so that one may be within itself."""

    def __init__(self, values: Iterable[Any], below: float) -> None:
        self._below = below
        self._steps: list[Callable[[], Any]] = []
        self._plain: set[int] = set()  # what is within an object that is known to be plain
        waiting, seen = list(values), set[int]()
        while waiting:
            value = waiting.pop()
            if not isinstance(value, _VALUES) and id(value) not in seen:
                seen.add(id(value))
                waiting += self._note(value)

    def put_back(self) -> None:
        for step in self._steps:
            step()

    def _note(self, value: Any) -> Iterable[Any]:
        """Note what is to be done, and return what else is within."""
        if isinstance(value, _GENERATORS):
            self._steps.append(_back_to_state(value))
        elif isinstance(value, Tensor | np.ndarray):
            if _bytes_of(value) < self._below:
                self._steps.append(_back_to_numbers(value))
        elif isinstance(value, tuple):
            return value
        elif _is_container(value):
            self._steps.append(partial(_refill, value, value.copy()))
            return _items(value)
        elif self._is_plain(value):
            self._steps.append(partial(_refill, vars(value), vars(value).copy()))
            return vars(value).values()
        return ()

    def _is_plain(self, owner: Any) -> bool:
        """Whether nothing is in an object but values, numbers, generators, and containers and objects of such."""
        waiting, seen = [owner], set[int]()
        while waiting:
            value = waiting.pop()
            if isinstance(value, _PLAIN) or id(value) in seen or id(value) in self._plain:
                continue
            seen.add(id(value))
            if _is_container(value):
                waiting += _items(value)
            elif _is_simple(value):
                waiting += vars(value).values()
            else:
                return False
        self._plain |= seen
        return True


def _bytes_of(value: Any) -> int:
    return value.nbytes if isinstance(value, np.ndarray) else value.numel() * value.element_size()


def _back_to_state(generator: Any) -> Callable[[], Any]:
    if isinstance(generator, np.random.Generator):
        return partial(setattr, generator.bit_generator, "state", copy.deepcopy(generator.bit_generator.state))
    if isinstance(generator, random.Random):
        return partial(generator.setstate, generator.getstate())
    return partial(generator.set_state, generator.get_state())


def _back_to_numbers(value: Any) -> Callable[[], Any]:
    if isinstance(value, np.ndarray):
        is_a_file = type(value) is not np.ndarray  # or may be one, as a `memmap` is
        return _nothing if is_a_file or not value.flags.writeable else partial(np.copyto, value, value.copy())
    if isinstance(value, nn.Parameter) or value.is_inference():
        return _nothing
    return partial(_fill, value, value._version, value.detach().clone())


def _nothing() -> None:
    return


@torch.no_grad()
def _fill(tensor: Tensor, version: int, numbers: Tensor) -> None:
    if tensor._version != version:
        tensor.copy_(numbers)


def _refill(container: Any, items: Any) -> None:
    container.clear()
    container.extend(items) if type(container) in _SEQUENCES else container.update(items)


def _is_container(value: Any) -> bool:
    return isinstance(value, tuple) or type(value) in _CONTAINERS


def _items(container: Any) -> Iterable[Any]:
    return container.values() if isinstance(container, dict) else container


def _is_simple(value: Any) -> bool:
    """Whether all that an object holds may be in its `__dict__`."""
    if callable(value) or not hasattr(value, "__dict__"):
        return False
    classes = type(value).__mro__
    return not any(
        one in _CONTAINERS or one.__module__.partition(".")[0] in _FRAMEWORKS or vars(one).get("__slots__")
        for one in classes
    )
