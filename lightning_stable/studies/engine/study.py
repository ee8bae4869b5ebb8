# SPDX-License-Identifier: Apache-2.0
"""What a study is: runs that differ in known ways, and one question about them. Imports nothing heavy."""

import json
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import product
from typing import TYPE_CHECKING, ClassVar

if TYPE_CHECKING:
    from matplotlib.figure import Figure

    from lightning_stable.studies.engine.outcome import Outcome

Value = str | int | float | bool | None
Point = Mapping[str, Value]


@dataclass(frozen=True)
class Trial:
    """One run of a study. Two trials are the same run if their keys are.

    Args:
        side: Who is compared: a schedule, a way to treat spikes.
        setting: What all sides meet alike and the table has a row for, such as a budget or a corruption.
        tuning: A point of the side's tuning grid, such as `{"lr": 0.1}`; empty where nothing is tuned.
        seed: Decides every random number of the run.

    Raises:
        ValueError: If a value is nothing that JSON keeps as it is.

    Example:
        >>> Trial("rex", {"budget": 0.05}, {"lr": 0.1}, seed=0).key
        '{"seed":0,"setting":{"budget":0.05},"side":"rex","tuning":{"lr":0.1}}'
    """

    side: str
    setting: Point = field(default_factory=dict)
    tuning: Point = field(default_factory=dict)
    seed: int = 0

    def __post_init__(self) -> None:
        for name, value in [*self.setting.items(), *self.tuning.items()]:
            if not isinstance(value, str | int | float | bool | None):
                raise ValueError(f"`Trial({name}=...)` must be a text, a number, a bool or None, got {value!r}.")
            if isinstance(value, float) and value - value != 0.0:
                raise ValueError(f"`Trial({name}=...)` must be finite, got {value!r}.")

    @cached_property
    def key(self) -> str:
        """What the storage knows the trial by: its content as a text."""
        return point_key({"side": self.side, "setting": self.setting, "tuning": self.tuning, "seed": self.seed})

    @staticmethod
    def from_key(key: str) -> "Trial":
        """The trial with this key.

        Args:
            key: As `Trial.key` has made it.
        """
        return Trial(**json.loads(key))

    def __hash__(self) -> int:
        return hash(self.key)


def point_key(point: Mapping[str, object]) -> str:
    """A point of a grid as a text that is the same for equal points.

    Args:
        point: Names and values.

    Example:
        >>> point_key({"lr": 0.1, "beta": 0.5})
        '{"beta":0.5,"lr":0.1}'
    """
    return json.dumps(point, sort_keys=True, separators=(",", ":"), default=dict)


def grid(
    sides: Iterable[str], settings: Iterable[Point], tunings: Iterable[Point], seeds: Iterable[int]
) -> list[Trial]:
    """Every side in every setting with every point of one tuning grid and every seed.

    Args:
        sides: Who is compared.
        settings: What all meet alike; one empty point if there is nothing of the kind.
        tunings: The points that each side may choose from; one empty point if nothing is tuned.
        seeds: The seeds.

    Example:
        >>> len(grid(["adam", "sgd"], [{}], [{"lr": 0.1}, {"lr": 0.2}], seeds=[0, 1, 2]))
        12
    """
    return [
        Trial(side, setting, tuning, seed)
        for setting, side, tuning, seed in product(list(settings), list(sides), list(tunings), list(seeds))
    ]


class Study(ABC):
    """A question, the runs that answer it, and how the answer is shown.

    The engine makes one object in the process that reports, and one in each worker that lives as long as it does, so
    that what many runs share (data, a network's first weights) can be kept on `self`. A study takes no arguments.

    Example:
        >>> class Toy(Study):
        ...     name, question, objective = "toy", "Which slope is steeper?", "loss"
        ...     def trials(self, seeds, quick):
        ...         return grid(["a", "b"], [{}], [{"lr": 0.1}, {"lr": 0.2}], seeds)
        ...     def run(self, trial):
        ...         return {"loss": trial.tuning["lr"]}
        ...     def table(self, outcome):
        ...         return ""
        ...     def draw(self, outcome, figure):
        ...         pass
        >>> Toy().run(Toy().trials([0], quick=True)[1])
        {'loss': 0.2}
    """

    name: ClassVar[str]
    """As in `lightning-stable study NAME`."""
    question: ClassVar[str]
    """One sentence; the table begins with it."""
    objective: ClassVar[str]
    """The result that chooses tuning points: the smallest mean over the seeds. NaN is the worst."""
    version: ClassVar[int] = 1
    """Raised when the same trial would now come to another result: older results are not mixed with it."""
    seeds: ClassVar[tuple[int, ...]] = (0, 1, 2)
    quick_seeds: ClassVar[tuple[int, ...]] = (0,)
    needs: ClassVar[tuple[str, ...]] = ()
    """Modules that a run imports and that may be missing, such as `sklearn`; looked for before anything runs."""

    @abstractmethod
    def trials(self, seeds: Sequence[int], quick: bool) -> list[Trial]:
        """Every run of the study, in the order in which they are begun.

        Args:
            seeds: Of `--seeds`, else `seeds` or `quick_seeds`.
            quick: Whether it is only to be seen that everything works. What makes such runs shorter belongs into
                `setting`, since `run` knows nothing else of it.
        """

    @abstractmethod
    def run(self, trial: Trial) -> dict[str, float]:
        """Make one run, in a worker; import torch and Lightning here.

        It depends on `trial` alone. A run that diverges returns NaN or infinity; what is raised is a run that failed.

        Args:
            trial: Which one.

        Returns:
            Numbers by name, the same names for every trial; `objective` is one of them.
        """

    @abstractmethod
    def table(self, outcome: "Outcome") -> str:
        """What stands in `table.md` below the question and the tuning budget, as Markdown.

        Args:
            outcome: Of all runs that are complete.
        """

    @abstractmethod
    def draw(self, outcome: "Outcome", figure: "Figure") -> None:
        """Draw into an empty figure, whose size may be set.

        Args:
            outcome: Of all runs that are complete.
            figure: Saved as `figure.png`.
        """

    def cost(self, trial: Trial) -> float:
        """About how long a run takes, in any unit: for the estimate of the time left.

        Args:
            trial: Which one.
        """
        return 1.0
