# SPDX-License-Identifier: Apache-2.0
"""Say what is wrong with an argument of `InjectFault`: the call, the bound, the value."""

import difflib
import math
from collections.abc import Iterable
from typing import Any

from lightning_stable.testing.faults import FAULT_KINDS

_FOR_ONE_BATCH = ("batch", "loss", "parameter", "module")


def require_arguments(kind: str, step: int, **said: Any) -> None:
    """Raise a ValueError if a kind is unknown, or an argument is out of its range or not one of the kind's.

    Example:
        >>> require_arguments("nan_los", 3)
        Traceback (most recent call last):
            ...
        ValueError: `InjectFault(kind='nan_los')` is not known. Did you mean 'nan_loss'?
    """
    if kind not in FAULT_KINDS:
        near = difflib.get_close_matches(kind, FAULT_KINDS, n=1)
        hint = f"Did you mean {near[0]!r}?" if near else f"There are {_listed(FAULT_KINDS)}."
        raise ValueError(f"`InjectFault(kind={kind!r})` is not known. {hint}")
    known = FAULT_KINDS[kind]
    takes = {
        "target": known.hits in ("batch", "parameter", "module"),
        "factor": known.factor is not None,
        "how": bool(known.ways),
        "repeat": known.hits in _FOR_ONE_BATCH,
        "seed": kind == "label_noise",
    }
    for name, value in said.items():
        if value is not None and not takes.get(name, True):
            raise ValueError(f"`InjectFault({kind!r})` takes no `{name}`, got {value!r}. Leave it out.")
    for name, value in (("step", step), ("rank", said.get("rank"))):
        if value is not None and value < 0:
            raise ValueError(f"`InjectFault({name}=...)` must be at least 0, got {value}.")
    factor, how = said.get("factor"), said.get("how")
    if factor is not None and not (math.isfinite(factor) and factor > 0):
        raise ValueError(f"`InjectFault(factor=...)` must be finite and larger than 0, got {factor}.")
    if how is not None and how not in known.ways:
        raise ValueError(f"`InjectFault(how=...)` must be one of {_listed(known.ways)} for {kind!r}, got {how!r}.")


def _listed(names: Iterable[str]) -> str:
    return ", ".join(map(repr, names))
