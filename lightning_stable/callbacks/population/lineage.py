# SPDX-License-Identifier: Apache-2.0
"""Who descends from whom in a population, with which hyper-parameters: kept, written, and read again."""

import itertools
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from lightning_stable.files import write_atomically

SCHEDULE = "lightning_stable population schedule"
_LARGEST_FILE = 16_000_000  # bytes
_LARGEST = 1e300  # whole numbers of JSON have no end


@dataclass(frozen=True)
class Turn:
    """One turn of one member.

    Args:
        generation: Its number, from 0.
        member: Its number, from 0.
        begin: Optimizer steps that its weights had taken before, along the line of those it descends from.
        end: The same after it.
        global_step: The steps of all members after it.
        hyperparameters: What it was trained with.
        score: What it came to; `None` if that is not finite, or not known.

    Example:
        >>> Turn(0, 1, 0, 10, 20, {"lr": 0.1}, 0.5).end
        10
    """

    generation: int
    member: int
    begin: int
    end: int
    global_step: int
    hyperparameters: dict[str, float]
    score: float | None


@dataclass(frozen=True)
class Copy:
    """A member has taken over weights and hyper-parameters of a better one.

    Args:
        generation: After which it was.
        member: Who gave up.
        parent: Who was copied.
        hyperparameters: What it tries from there on.

    Example:
        >>> Copy(0, 1, 0, {"lr": 0.08}).parent
        0
    """

    generation: int
    member: int
    parent: int
    hyperparameters: dict[str, float]


@dataclass
class Lineage:
    """All turns and all copies of a run, in their order.

    Example:
        >>> lineage = Lineage()
        >>> lineage.turns += [Turn(0, 0, 0, 5, 5, {"lr": 1.0}, 0.1), Turn(0, 1, 0, 5, 10, {"lr": 2.0}, 0.3)]
        >>> lineage.copies += [Copy(0, 1, 0, {"lr": 0.8})]
        >>> lineage.turns += [Turn(1, 0, 5, 10, 15, {"lr": 1.0}, 0.2), Turn(1, 1, 5, 10, 20, {"lr": 0.8}, 0.05)]
        >>> [(turn.generation, turn.member) for turn in lineage.line_of(1)]
        [(0, 0), (1, 1)]
        >>> lineage.schedule_of(1)
        [{'step': 0, 'hyperparameters': {'lr': 1.0}}, {'step': 5, 'hyperparameters': {'lr': 0.8}}]
    """

    turns: list[Turn] = field(default_factory=list)
    copies: list[Copy] = field(default_factory=list)

    def line_of(self, member: int) -> list[Turn]:
        """The turns that have led to the weights of `member`, its ancestors' and then its own."""
        turns = {(turn.generation, turn.member): turn for turn in self.turns}
        parents = {(copy.generation, copy.member): copy.parent for copy in self.copies}
        line = []
        for generation in range(max((turn.generation for turn in self.turns), default=-1), -1, -1):
            member = parents.get((generation, member), member)  # copied after this generation
            if (generation, member) in turns:
                line.append(turns[generation, member])
        return line[::-1]

    def schedule_of(self, member: int) -> list[dict[str, Any]]:
        """From which step on which hyper-parameters were in force on the line of `member`."""
        segments: list[dict[str, Any]] = []
        for turn in self.line_of(member):
            if not segments or segments[-1]["hyperparameters"] != turn.hyperparameters:
                segments.append({"step": turn.begin, "hyperparameters": dict(turn.hyperparameters)})
        return segments

    def to_json(self) -> dict[str, Any]:
        """All of it in plain types."""
        return {"turns": [asdict(turn) for turn in self.turns], "copies": [asdict(copy) for copy in self.copies]}

    @classmethod
    def from_json(cls, content: Mapping[str, Any]) -> "Lineage":
        """What `to_json` has made; an error of any kind if it is not that."""
        return cls([Turn(**turn) for turn in content["turns"]], [Copy(**copy) for copy in content["copies"]])


def write_json(path: Path, content: Any) -> None:
    """Write `content`: whoever reads `path` finds the old file or the new one.

    Args:
        path: Of the file; its folder is made.
        content: Plain types, without numbers that are not finite.

    Raises:
        OSError: If it cannot be written; nothing is left behind then.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_json(Path(folder, "a", "b.json"), {"x": 1})
        ...     json.loads(Path(folder, "a", "b.json").read_text())
        {'x': 1}
    """
    text = json.dumps(content, indent=2, allow_nan=False) + "\n"
    path.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(path, text.encode())


def write_schedule(path: Path, segments: list[dict[str, Any]], steps: int) -> None:
    """Write a schedule that `ReplayPopulation` follows.

    Args:
        path: Of the file.
        segments: As `Lineage.schedule_of` has them.
        steps: How many optimizer steps it covers.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> with TemporaryDirectory() as folder:
        ...     write_schedule(Path(folder, "schedule.json"), [{"step": 0, "hyperparameters": {"lr": 0.5}}], 7)
        ...     read_schedule(Path(folder, "schedule.json"))
        [(0, {'lr': 0.5})]
    """
    write_json(path, {"format": SCHEDULE, "version": 1, "steps": steps, "segments": segments})


def read_schedule(path: str | Path) -> list[tuple[int, dict[str, float]]]:
    """The steps at which hyper-parameters change, and what they are from there on.

    Args:
        path: A file that `write_schedule` has written.

    Raises:
        ValueError: If it is not such a file; the message names it.
        OSError: If it cannot be read.

    Example:
        >>> read_schedule("no/such/schedule.json")
        Traceback (most recent call last):
            ...
        FileNotFoundError: [Errno 2] No such file or directory: 'no/such/schedule.json'
    """
    if Path(path).stat().st_size > _LARGEST_FILE:
        raise ValueError(f"{path} is no schedule of a population: it is larger than {_LARGEST_FILE:,} bytes.")
    try:
        content = json.loads(Path(path).read_bytes())
    except (ValueError, RecursionError):
        raise ValueError(f"{path} is no schedule of a population: it is not JSON.") from None
    if not isinstance(content, dict) or (content.get("format"), content.get("version")) != (SCHEDULE, 1):
        raise ValueError(f"{path} is no schedule of a population, which says so in `format`, with `version` 1.")
    found = content.get("segments")
    segments = [_segment(path, segment) for segment in found] if isinstance(found, list) else []
    steps = [step for step, _ in segments]
    if not segments or steps[0] != 0 or any(a >= b for a, b in itertools.pairwise(steps)):
        raise ValueError(f"{path}: `segments` must begin at step 0, and each at a later step than the one before.")
    if any(values.keys() != segments[0][1].keys() for _, values in segments):
        raise ValueError(f"{path}: all `segments` must have the same hyper-parameters.")
    return segments


def _segment(path: str | Path, segment: Any) -> tuple[int, dict[str, float]]:
    step, values = (segment.get("step"), segment.get("hyperparameters")) if isinstance(segment, dict) else (None, None)
    if not isinstance(step, int) or isinstance(step, bool) or not isinstance(values, dict) or not values:
        raise ValueError(f"{path}: a segment must have a whole number as `step`, and `hyperparameters`.")
    for name, value in values.items():
        is_number = isinstance(value, int | float) and not isinstance(value, bool)
        if not is_number or not abs(value) <= _LARGEST or (name == "lr" and value <= 0):
            raise ValueError(f"{path}: {name!r} must be a finite number, and a learning rate above 0; got {value!r}.")
    return step, {name: float(value) for name, value in values.items()}
