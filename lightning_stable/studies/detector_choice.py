# SPDX-License-Identifier: Apache-2.0
"""A detector as it is written on the command line: `LevelShift(min_rise=0.2)`, or as in YAML."""

import ast
import copy
import inspect
import pkgutil
import re
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from jsonargparse import ArgumentParser

from lightning_stable import detectors
from lightning_stable.detectors import Detector

_CALL = re.compile(r"[^{}\[\]:]*\(.*", re.DOTALL)
_NO_CLASS = re.compile(
    r"(?:Expected a dot import path string: |Import path )(?P<name>[\w.]+)|No module named|"
    r"Expected a dot import path string|is abstract|is not importable|Not a valid subclass"
)
_NO_OPTION = re.compile(r"given class_path '(?P<path>[\w.]+)':\s*Option '(?P<option>\w+)' is not accepted")


class WrongDetector(ValueError):
    """A detector that there is not, or that cannot be built like that.

    Example:
        >>> str(WrongDetector("there is no detector 'ZScor'"))
        "there is no detector 'ZScor'"
    """


@dataclass(frozen=True)
class DetectorChoice:
    """A detector that can be built anew, also with another argument.

    Args:
        config: `class_path` and `init_args`, the defaults among them.

    Example:
        >>> choice = choose_detector("ZScore(threshold=7)")
        >>> choice.changed("threshold", 9.5).build().threshold
        9.5
    """

    config: dict[str, Any]

    @property
    def label(self) -> str:
        """The call that makes it, without the defaults, as the command line takes it."""
        return _call(self.config)

    @property
    def arguments(self) -> dict[str, Any]:
        """What it is built with."""
        return dict(self.config.get("init_args", {}))

    def changed(self, argument: str, value: Any) -> "DetectorChoice":
        """The same with another argument."""
        return DetectorChoice({**self.config, "init_args": {**self.arguments, argument: value}})

    def build(self) -> Detector:
        """A new one, which has seen nothing."""
        parser = _parser()
        config = parser.parse_object({"detector": copy.deepcopy(self.config)})
        instantiate = getattr(parser, "instantiate", None) or parser.instantiate_classes  # before jsonargparse 4.49
        return instantiate(config)["detector"]


def choose_detector(text: str) -> DetectorChoice:
    """Read what was written for `--detector`.

    Args:
        text: The name of a class of `lightning_stable.detectors`, or the import path of another, alone or as a call
            with names and literals, in which detectors may be nested; or `class_path` and `init_args` as YAML or JSON.

    Raises:
        WrongDetector: If there is no such detector, or it refuses its arguments.

    Example:
        >>> choose_detector("Consecutive(detector=ZScore(), times=2)").label
        'Consecutive(detector=ZScore(), times=2)'
        >>> choose_detector("{class_path: LevelShift, init_args: {min_rise: 0.2}}").label
        'LevelShift(min_rise=0.2)'
    """
    parser = _parser()
    try:
        if _CALL.fullmatch(text):
            config = parser.parse_object({"detector": _config_of_call(text)})
        else:
            config = parser.parse_args([f"--detector={text}"])
        choice = DetectorChoice(_plain(config.detector))
        choice.build()
    except WrongDetector:
        raise
    except Exception as error:  # jsonargparse imports what is asked for, and the class may refuse it in any way
        raise WrongDetector(_readable(text, str(error))) from error
    return choice


def known_detectors() -> list[str]:
    """The names of this package's detectors.

    Example:
        >>> "MedianDeviation" in known_detectors(), "Detector" in known_detectors()
        (True, False)
    """
    return sorted(
        name
        for name, value in vars(detectors).items()
        if inspect.isclass(value) and issubclass(value, Detector) and not inspect.isabstract(value)
    )


def _parser() -> ArgumentParser:
    parser = ArgumentParser(exit_on_error=False)
    parser.add_argument("--detector", type=Detector, required=True)
    return parser


def _config_of_call(text: str) -> Any:
    try:
        return _config_of(ast.parse(text.strip(), mode="eval").body)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        if isinstance(error, WrongDetector):
            raise
        raise WrongDetector(f"{text!r} is no call such as 'LevelShift(min_rise=0.2)'.") from error


def _config_of(node: ast.expr) -> Any:
    """Calls become `class_path` and `init_args`; nothing is executed."""
    if isinstance(node, ast.Call):
        name = ast.unparse(node.func)
        if node.args or any(keyword.arg is None for keyword in node.keywords):
            raise WrongDetector(f"`{name}(...)` takes its arguments by name, as in 'LevelShift(min_rise=0.2)'.")
        return {"class_path": name, "init_args": {str(each.arg): _config_of(each.value) for each in node.keywords}}
    if isinstance(node, ast.List | ast.Tuple):
        return [_config_of(each) for each in node.elts]
    return ast.literal_eval(node)


def _plain(config: Any) -> Any:
    """Namespaces as dictionaries, however deep."""
    if hasattr(config, "as_dict"):
        return _plain(config.as_dict())
    if isinstance(config, dict):
        return {key: _plain(value) for key, value in config.items()}
    return [_plain(each) for each in config] if isinstance(config, list) else config


def _call(config: Any) -> str:
    if isinstance(config, list):
        return f"[{', '.join(map(_call, config))}]"
    if not isinstance(config, dict) or "class_path" not in config:
        return repr(config)
    path = config["class_path"]
    name = path.rpartition(".")[2]
    shown = name if name in known_detectors() and getattr(detectors, name) is pkgutil.resolve_name(path) else path
    defaults = _defaults(path)
    given = {key: value for key, value in config.get("init_args", {}).items() if value != defaults.get(key, ...)}
    return f"{shown}({', '.join(f'{key}={_call(value)}' for key, value in given.items())})"


def _defaults(path: str) -> dict[str, Any]:
    parameters = inspect.signature(pkgutil.resolve_name(path)).parameters.values()
    return {each.name: each.default for each in parameters}


def _readable(text: str, message: str) -> str:
    if match := _NO_OPTION.search(message):
        path, option = match["path"], match["option"]
        takes = ", ".join(_defaults(path)) or "none"
        return f"`{path.rpartition('.')[2]}` has no argument {option!r}; it takes {takes}."
    if match := _NO_CLASS.search(message):
        name = match["name"] or text
        close = get_close_matches(name, known_detectors(), n=1)
        meant = f"did you mean {close[0]}? They" if close else "they"
        return f"there is no detector {name!r}; {meant} are {', '.join(known_detectors())}."
    from lightning_stable._lightning.command_line.parser import (
        readable,  # takes seconds, which only mistakes should cost
    )

    return f"{text}: {readable(message)}" if "`" not in message else readable(message)
