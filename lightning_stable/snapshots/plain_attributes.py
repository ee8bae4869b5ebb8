# SPDX-License-Identifier: Apache-2.0
"""What a step changes of an object's plain attributes: counters, lists, generators, tensors that are no buffers."""

import copy
import random
from collections import OrderedDict, defaultdict, deque
from collections.abc import Collection
from typing import Any

import numpy as np
import torch
from torch import nn

_OF_A_MODULE = vars(nn.Module()).keys() - {"training"}  # its parameters, buffers, children and hooks
_SEQUENCES, _SETS = (list, deque), (dict, OrderedDict, defaultdict, set)  # others may mean something else by `clear`


class PlainAttributes:
    """The plain attributes of an object, and what containers, tensors and generators among them hold.

    Args:
        owner: Of any class that keeps its attributes in `__dict__`.
        leave: Names of attributes that are somebody else's to put back.

    Example:
        >>> from types import SimpleNamespace
        >>> owner = SimpleNamespace(count=1, seen=["a"])
        >>> kept = PlainAttributes(owner)
        >>> owner.count, owner.new = 2, True
        >>> owner.seen.append("b")
        >>> kept.put_back()
        >>> owner
        namespace(count=1, seen=['a'])
    """

    def __init__(self, owner: Any, leave: Collection[str] = ()) -> None:
        self._owner = vars(owner)
        self._leave = leave
        self._found = {name: self._owner[name] for name in self._names()}
        self._contents = {name: _contents(value) for name, value in self._found.items()}

    def put_back(self) -> None:
        """As they were when this was made; attributes that were born since are gone."""
        for name in self._names():
            if name not in self._found:
                del self._owner[name]
        for name, value in self._found.items():
            self._owner[name] = value
            _fill(value, self._contents[name])

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


def _contents(value: Any) -> Any:
    if isinstance(value, torch.Generator):
        return value.get_state()
    if isinstance(value, np.random.Generator):
        return copy.deepcopy(value.bit_generator.state)
    if isinstance(value, np.random.RandomState | random.Random):
        return value.get_state() if isinstance(value, np.random.RandomState) else value.getstate()
    if isinstance(value, torch.Tensor):
        return None if value.is_inference() else (value._version, value.detach().clone())
    return value.copy() if type(value) in (*_SEQUENCES, *_SETS) else None


@torch.no_grad()
def _fill(value: Any, contents: Any) -> None:
    if isinstance(value, torch.Generator):
        value.set_state(contents)
    elif isinstance(value, np.random.Generator):
        value.bit_generator.state = contents
    elif isinstance(value, random.Random):
        value.setstate(contents)
    elif isinstance(value, np.random.RandomState):
        value.set_state(contents)
    elif isinstance(value, torch.Tensor):
        if contents is not None and value._version != contents[0]:
            value.copy_(contents[1])
    elif type(value) in (*_SEQUENCES, *_SETS):
        value.clear()
        value.extend(contents) if type(value) in _SEQUENCES else value.update(contents)
