# SPDX-License-Identifier: Apache-2.0
"""The curve of a learning-rate schedule, apart from warmup, sampling and what it is counted in."""

import inspect
from abc import ABC, abstractmethod
from collections.abc import Mapping
from importlib import import_module
from typing import Any, ClassVar


class Profile(ABC):
    """A factor on the base rate, as a function of how much of the run is done: what `ProfileLR` follows.

        rate = base rate * factor(done, length),    0 <= done,    length: what there is to do, or infinity

    Paper: Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training with an Improved Schedule" (MLSys 2022), who
    take schedules apart into a profile and how often it is sampled.

    Deviations: none.

    Derive from it for a curve of your own: `factor` is all that is needed. Arguments go into attributes of their names,
    so that `repr` can say them. A profile keeps no state.

    Example:
        >>> class Half(Profile):
        ...     def factor(self, done: float, length: float) -> float:
        ...         return 1.0 if done < length / 2 else 0.5
        >>> Half().factor(75, 100), Half()
        (0.5, Half())
    """

    needs_length: ClassVar[bool] = True  # whether the curve means nothing in a run without end

    @abstractmethod
    def factor(self, done: float, length: float) -> float:
        """What the base rate is multiplied by.

        Args:
            done: What has been done since the warmup.
            length: What there is to do after the warmup, in the same unit.
        """

    def momentum(self, done: float, length: float) -> float | None:
        """Momentum, or Adam's beta1, at the same moment; `None` leaves it to the optimizer."""
        return None

    def __repr__(self) -> str:
        names = [name for name in inspect.signature(type(self)).parameters if hasattr(self, name)]
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"


def progress(done: float, length: float) -> float:
    """The share of the run that is done, between 0 and 1.

    Example:
        >>> progress(30, 40), progress(50, 40), progress(30, float("inf"))
        (0.75, 1.0, 0.0)
    """
    return min(max(done / length, 0.0), 1.0) if length > 0 else 1.0


def reached(done: float, length: float, fraction: float) -> bool:
    """Whether a fraction of the run is done; 0.07 of 100 steps are 7, whatever floating point makes of it.

    Example:
        >>> 0.07 * 100 > 7, reached(7, 100, 0.07), reached(6, 100, 0.07)
        (True, True, False)
    """
    return done >= fraction * length * (1.0 - 1e-12)


def as_profile(profile: "Profile | str | Mapping[str, Any]") -> Profile:
    """The profile itself, or the one that a text or a part of a YAML file names.

    Args:
        profile: A `Profile`; the name of one of this room, such as `"Cosine"`, or the dotted name of another; or
            `{"class_path": name, "init_args": {...}}`.

    Raises:
        ValueError: If there is no such profile.

    Example:
        >>> as_profile("Cosine")
        Cosine()
        >>> as_profile({"class_path": "REX", "init_args": {"beta": 0.9}})
        REX(beta=0.9)
    """
    if isinstance(profile, Profile):
        return profile
    entry: Any = {"class_path": profile} if isinstance(profile, str) else profile
    if not isinstance(entry, Mapping) or "class_path" not in entry or not entry.keys() <= {"class_path", "init_args"}:
        raise ValueError(
            "`ProfileLR(profile=...)` must be a profile, its name, or a mapping with `class_path` and `init_args`, "
            f"got {profile!r}."
        )
    return _profile_class(str(entry["class_path"]))(**dict(entry.get("init_args") or {}))


def _profile_class(name: str) -> Any:
    module, _, attribute = name.rpartition(".")
    room = import_module("lightning_stable.schedules")
    try:
        found = getattr(import_module(module) if module else room, attribute)
    except (ImportError, AttributeError, ValueError):
        found = None
    if isinstance(found, type) and issubclass(found, Profile) and not inspect.isabstract(found):
        return found
    known = sorted(each for each, value in vars(room).items() if isinstance(value, type) and issubclass(value, Profile))
    raise ValueError(
        f"`ProfileLR(profile=...)` must be one of {', '.join(each for each in known if each != 'Profile')}, or the "
        f"dotted name of a class derived from Profile, got {name!r}."
    )
