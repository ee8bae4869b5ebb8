# SPDX-License-Identifier: Apache-2.0
"""Responses that act on every spike, beside the one that answers it: save the batch, tell somebody."""

import pkgutil
from abc import abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn

from lightning_stable.guard.incident import Incident
from lightning_stable.guard.recovery import Recovery
from lightning_stable.guard.responses import Actions, Response
from lightning_stable.guard.saved_step import write_step
from lightning_stable.guard.signals import Signals
from lightning_stable.guard.window import Window


@dataclass
class Scene:
    """What a side response may look at.

    Example:
        >>> Scene.__name__  # made by `SpikeGuard`
        'Scene'
    """

    trainer: Trainer
    pl_module: LightningModule
    incident: Incident
    readings: dict[str, float]
    batches: list[Any]  # as the loader gave them
    random_state: dict[str, Any]  # before the step


@dataclass
class SpikedStep:
    """A step that spiked, before anything is undone.

    Example:
        >>> SpikedStep.__name__  # made by `SpikeGuard`
        'SpikedStep'
    """

    trainer: Trainer
    pl_module: LightningModule
    recovery: Recovery
    signals: Signals  # as they judged
    window: Window


class SideResponse(Response):
    """Acts beside the response that answers; it does not use up the spike.

    Args:
        times: How often it may act before clean steps fill its budget again, at least 1.

    Example:
        >>> Notify().is_side
        True
    """

    is_side = True
    after_record = False  # whether it acts when the incident is written down already

    def prepare(self, trainer: Trainer) -> None:
        """Refuse what cannot work, before training begins."""
        return

    def respond(self, actions: Actions) -> list[str]:
        """Nothing is restored: that is for the response that answers."""
        return []

    def before_response(self, step: SpikedStep) -> None:
        """Look at the step before it is undone; what is found goes to its window."""
        return

    @abstractmethod
    def act(self, scene: Scene) -> None:
        """Do it; what people should know of it goes to the incident's notes."""


class SaveBatch(SideResponse):
    """Save the batches of the step that spiked, to look at them later and to run the step again.

    Two files for each incident, named after the loggers' step. `step00000123.pt` loads with `weights_only=True`, and
    `SavedStep` reads it: the batches as the loader gave them, their indices, the random state before the step, loss and
    gradient norm, and all that the incident says. `step00000123.json` is the same without tensors and random state,
    with a command that runs the step again. Both are written to another name and then renamed.

    What `weights_only` cannot load is left out, NumPy arrays become tensors, dataclasses and other objects the
    dictionaries of their tensors; the incident names what was left out or changed. If nothing can be written (a full
    disk, say), the incident and a warning say so, and the run goes on.

    Args:
        folder: Where, below the run's directory (the logger's, or the Trainer's `default_root_dir`), which it may not
            leave.
        times: How often before clean steps fill its budget again, at least 1. Each costs the disk one batch.
        max_files: How many steps the folder may hold, of each rank, at least 1; the incidents of later ones say so.

    Raises:
        ValueError: If `times` or `max_files` is below 1, or, from `fit`, if `folder` lies outside the run's directory.

    Example:
        >>> from lightning_stable.guard import Halt, SkipStep, SpikeGuard
        >>> guard = SpikeGuard(ladder=[SaveBatch(), SkipStep(times=5), Halt()])
    """

    needs_batches = True

    def __init__(self, folder: str = "spikes", times: int = 3, max_files: int = 100) -> None:
        super().__init__(times)
        if max_files < 1:
            raise ValueError(f"`SaveBatch(max_files=...)` must be at least 1, got {max_files}.")
        self.folder = folder
        self.max_files = max_files
        self._target = Path(folder)

    def prepare(self, trainer: Trainer) -> None:
        """Find the folder, and refuse one that lies elsewhere."""
        root = Path(trainer.log_dir or trainer.default_root_dir).resolve()
        self._target = (root / self.folder).resolve()
        if not self._target.is_relative_to(root):
            raise ValueError(
                f"`SaveBatch(folder=...)` must lie within the run's directory {root}, got {self.folder!r}."
            )

    def act(self, scene: Scene) -> None:
        """Write both files."""
        rank = f"_rank{scene.trainer.global_rank}" if scene.trainer.world_size > 1 else ""
        if sum(1 for _ in self._target.glob(f"step{'[0-9]' * 8}{rank}.pt")) >= self.max_files:
            scene.incident.notes.append(f"batch not saved: `SaveBatch(max_files={self.max_files})`")
            return
        path = self._target / f"step{scene.incident.step:08d}{rank}.pt"
        try:
            notes = write_step(path, scene.trainer, scene.pl_module, scene.incident, vars(scene))
        except Exception as error:  # a full disk, or a batch of a kind that nobody has thought of
            reason = getattr(error, "strerror", None) or f"{type(error).__name__}: {error}"
            notes = [f"batch not saved: {reason}"]
            rank_zero_warn(f"SpikeGuard cannot write {path} ({reason}). The run goes on, the batch is not saved.")
        scene.incident.notes.extend(notes)


class Notify(SideResponse):
    """Call a function with the `Incident`, once it is written down; also with a warning, whose `is_warning` is true.

    An exception in the function is a warning, never the end of the run. With several processes the first one calls.

    Args:
        function: A function of one argument, the `Incident`; or its import path, such as `my_module.tell`. The default
            prints the incident.
        times: How often before clean steps fill its budget again, at least 1. A warning spends nothing of it.

    Raises:
        ValueError: If `times` is below 1, or `function` is neither a function nor the import path of one.

    Example:
        >>> from lightning_stable.guard import SkipStep, SpikeGuard
        >>> told = []
        >>> guard = SpikeGuard(ladder=[Notify(told.append), SkipStep()])
    """

    after_record = True
    takes_warnings = True

    def __init__(self, function: Any = "builtins.print", times: int = 100) -> None:
        super().__init__(times)
        self._function = _resolved(function)

    def act(self, scene: Scene) -> None:
        """Call it."""
        if not scene.trainer.is_global_zero:
            return
        try:
            self._function(scene.incident)
        except Exception as error:  # whatever somebody else's function does
            rank_zero_warn(f"`Notify(function=...)` raised {type(error).__name__}: {error}. The run goes on.")


def _resolved(function: Any) -> Callable[[Incident], Any]:
    found = function
    if isinstance(function, str):
        try:
            found = pkgutil.resolve_name(function)
        except (ImportError, AttributeError, ValueError):
            found = None
    if not callable(found):
        raise ValueError(
            "`Notify(function=...)` must be a function or the import path of one, such as `my_module.tell`, got"
            f" {function!r}."
        )
    return found
