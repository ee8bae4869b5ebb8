# SPDX-License-Identifier: Apache-2.0
"""Look a guard's state over before it is taken up: a checkpoint may be damaged, or come from anybody."""

import copy
import reprlib
import textwrap
import warnings
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from lightning_stable.guard.incident import Incident
from lightning_stable.guard.replays import Replay
from lightning_stable.guard.signals import Signals
from lightning_stable.snapshots.random_state import RandomState


class _Kind(NamedTuple):
    words: str
    holds: Callable[[Any], bool]


def _is_count(value: Any) -> bool:
    return type(value) is int and value >= 0


def _is_number(value: Any) -> bool:
    return type(value) in (int, float)


def _is_number_or_word(value: Any) -> bool:
    return _is_number(value) or value in ("nan", "inf", "-inf")


def _list_of(holds: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, list) and all(map(holds, value))


def _is_pair(value: Any) -> bool:
    return isinstance(value, tuple | list) and len(value) == 2 and all(map(_is_count, value))


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


_COUNT = _Kind("a whole number from 0", _is_count)
_COUNT_OR_NONE = _Kind("a whole number from 0 or None", lambda value: value is None or _is_count(value))
_COUNTS = _Kind("a list of whole numbers from 0", _list_of(_is_count))
_AT_LEAST_ONE = _Kind("a whole number from 1", lambda value: _is_count(value) and value >= 1)
_NUMBER = _Kind("a number", _is_number)
_NUMBER_OR_NONE = _Kind("a number or None", lambda value: value is None or _is_number(value))
_READING = _Kind('a number, "nan", "inf" or "-inf"', _is_number_or_word)
_TEXT = _Kind("a text", _is_text)
_TEXTS = _Kind("a list of texts", _list_of(_is_text))
_NAME = _Kind("the name of a class", lambda value: _is_text(value) and value.isidentifier())
_SCALE = _Kind("a number from 0 to 1", lambda value: _is_number(value) and 0 <= value <= 1)
_STATES = _Kind(
    "from name to state",
    lambda value: isinstance(value, dict) and all(_is_text(key) and isinstance(value[key], dict) for key in value),
)
_NAMES = _Kind(
    "from name to name",
    lambda value: isinstance(value, dict) and all(_is_text(key) and _is_text(value[key]) for key in value),
)
_NUMBERS = _Kind(
    "from name to a list of numbers",
    lambda value: isinstance(value, dict) and all(_is_text(key) and _list_of(_is_number)(value[key]) for key in value),
)
_TRUTH = _Kind("True or False", lambda value: isinstance(value, bool))
_LIST = _Kind("a list", lambda value: isinstance(value, list))
_ANYTHING = _Kind("anything", lambda value: True)

_PLACES = _Kind("a list of pairs of whole numbers", _list_of(_is_pair))
_LIST_OF_NUMBERS = _Kind("a list of numbers", _list_of(_is_number))
_NORMS = _Kind(
    "a list of dictionaries from name to number",
    _list_of(lambda value: isinstance(value, dict) and all(_is_text(k) and _is_number(v) for k, v in value.items())),
)

_STATE = {
    "signals": {
        "detectors": _STATES,
        "kinds": _NAMES,
        "norms": _NUMBERS,
        "warnings": {"detectors": _STATES, "kinds": _NAMES, "alarmed": _TEXTS},
    },
    "ladder": {
        "used": _COUNTS,
        "clean_steps": _COUNT,
        "cooling": _COUNT,
        "cooling_rungs": _COUNT,
        "escalation": {"rollbacks": _COUNT, "windows_left": _COUNT},
    },
    "journal": {"incidents": _LIST, "overflows": _COUNT, "best_val_loss": _NUMBER, "last_val_loss": _NUMBER},
    "resume": {"has_begun": _TRUTH, "under_way": _TRUTH, "position": _COUNT},
    "resumed": {"losses": _LIST_OF_NUMBERS, "updates": _LIST_OF_NUMBERS, "moments": _NORMS},
    "lr_scale": {"value": _SCALE, "recover_after": _COUNT_OR_NONE, "lowest": _SCALE, "clean_steps": _COUNT},
    "passed_over": _ANYTHING,
}
_PASSED_OVER = {"wanted": _COUNT, "done": _COUNT, "a_window": _AT_LEAST_ONE}
_INCIDENT = {
    **{key: _COUNT for key in ("step", "global_step", "epoch")},
    **{key: _COUNT for key in ("steps_skipped", "steps_rolled_back", "batches_passed_over")},
    **{key: _READING for key in ("value", "threshold")},
    **{key: _TEXTS for key in ("restored", "notes", "batch_hash")},
    **{key: _NUMBER_OR_NONE for key in ("norm_before", "norm_after")},
    "batches": _COUNTS,
    "signal": _TEXT,
    "response": _NAME,
    "seconds_lost": _NUMBER,
    "time": _TEXT,
    "cause": _TEXT,
    "rank": _COUNT_OR_NONE,
}


def check_state(state: Any, signals: Signals) -> None:
    """Raise a `ValueError` that names the first part of a guard's state that cannot be taken up.

    Nothing is taken up here. Keys that are not known are left alone: a later version may have written them.

    Args:
        state: What `SpikeGuard.state_dict` returned once, or anything else.
        signals: The guard's own, by which the states of its detectors are tried out.

    Raises:
        ValueError: If a part is missing, or is not what it should be.

    Example:
        >>> check_state({"signals": 3}, Signals({}))
        Traceback (most recent call last):
            ...
        ValueError: `SpikeGuard` cannot take up the checkpoint: its `signals` must be a dictionary, got 3.
    """
    _check(state, _STATE, "")
    if state["passed_over"] != {}:  # a guard that has not run
        _check(state["passed_over"], _PASSED_OVER, "passed_over")
    for index, fields in enumerate(state["journal"]["incidents"]):
        _check_incident(fields, f"journal.incidents[{index}]")
    _check_random_states(state["resume"])
    _check_signals(state["signals"], signals)


def _check(value: Any, expected: Mapping[str, Any] | _Kind, where: str) -> None:
    if isinstance(expected, _Kind):
        if not expected.holds(value):
            raise _refusal(where, expected.words, value)
        return
    if not isinstance(value, dict):
        raise _refusal(where, "a dictionary", value)
    for key, part in expected.items():
        if key not in value:
            raise _refusal(where, f"a dictionary with `{key}`", value)
        _check(value[key], part, f"{where}.{key}" if where else key)


def _check_incident(fields: Any, where: str) -> None:
    known = {key: kind for key, kind in _INCIDENT.items() if isinstance(fields, dict) and key in fields}
    _check(fields, known, where)
    _try_out(lambda: Incident.from_json(fields), where, "the fields of an incident", fields)


def _check_random_states(resume: dict[str, Any]) -> None:
    ranks = resume.get("ranks", [resume])
    if not isinstance(ranks, list) or not ranks:
        raise _refusal("resume.ranks", "a list of at least one", ranks)
    for index, rank in enumerate(ranks):
        where = f"resume.ranks[{index}]" if "ranks" in resume else "resume"
        _check(rank, {"now": _ANYTHING, "epoch": _ANYTHING, "fetch": _ANYTHING, "loaders": _LIST}, where)
        _check(rank, {"replay": {"places": _PLACES, "random": _LIST, "shortfall": _COUNT}}, where)
        _try_out(
            lambda rank=rank: Replay.from_state_dict(rank["replay"]), f"{where}.replay", "a replay", rank["replay"]
        )
        for key in ("now", "epoch", "fetch"):
            if key == "now" or rank[key] is not None:
                words = "the states of random number generators"
                _try_out(lambda state=rank[key]: RandomState.from_state_dict(state), f"{where}.{key}", words, rank[key])


def _check_signals(state: dict[str, Any], signals: Signals) -> None:
    warnings_of, none = state["warnings"], {"detectors": {}}
    for key, alone in _one_by_one(state, "signals"):
        _try_detector(key, {**state, **alone, "warnings": {**warnings_of, **none}}, "signals", alone, signals)
    for key, alone in _one_by_one(warnings_of, "signals.warnings"):
        one = {**state, **none, "warnings": {**warnings_of, **alone}}
        _try_detector(key, one, "signals.warnings", alone, signals)


def _one_by_one(state: dict[str, Any], where: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each of the detectors, by its signal, as if it were the only one."""
    for key, detector in state["detectors"].items():
        if key not in state["kinds"]:
            raise _refusal(f"{where}.kinds", f"a dictionary with {key!r}", state["kinds"])
        yield key, {"detectors": {key: detector}}


def _try_detector(key: str, state: dict[str, Any], where: str, alone: dict[str, Any], signals: Signals) -> None:
    words = "the state of its detector"
    _try_out(lambda: _rehearse(state, key, signals), f"{where}.detectors[{key!r}]", words, alone["detectors"])


def _rehearse(state: dict[str, Any], key: str, signals: Signals) -> None:
    trial = copy.deepcopy(signals)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of detectors of another kind it is warned when they are taken up
        trial.load_state_dict(state)
    trial.judge({key: 1.0})
    trial.reject({key: 1.0})
    trial.accept({key: 1.0})


def _try_out(load: Callable[[], Any], where: str, words: str, value: Any) -> None:
    try:
        load()
    except Exception as error:  # whatever strange values lead to
        raise _refusal(where, words, value) from error


def _refusal(where: str, words: str, value: Any) -> ValueError:
    part = f"its `{where}`" if where else "the guard's state"
    got = textwrap.shorten(reprlib.repr(value), 80, placeholder=" ...")
    return ValueError(f"`SpikeGuard` cannot take up the checkpoint: {part} must be {words}, got {got}.")
