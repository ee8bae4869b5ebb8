# SPDX-License-Identifier: Apache-2.0
"""What a population leaves behind: `pbt.json`, `schedule.json`, `pbt.png`, and the best member in checkpoints."""

from dataclasses import asdict
from pathlib import Path
from typing import Any

from lightning.pytorch import Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_stable._lightning.trainer import callbacks_of
from lightning_stable.callbacks.population.lineage import Lineage, write_json, write_schedule
from lightning_stable.callbacks.population.settings import Settings

LINEAGE_FILE, SCHEDULE_FILE, PICTURE_FILE = "pbt.json", "schedule.json", "pbt.png"


class Records:
    """Writes the files; a folder that cannot be written to is said once, and is no reason not to train.

    Args:
        folder: Where to; `None` writes nothing.
        settings: What the user has set.

    Example:
        >>> Records(None, None).write(Lineage(), None)
    """

    def __init__(self, folder: str | None, settings: Settings | None) -> None:
        self._folder = None if folder is None else Path(folder)
        self._settings = settings

    def write(self, lineage: Lineage, best: int | None) -> None:
        """Write what has been so far: the lineage, and the schedule of the best member."""
        if self._folder is None:
            return
        assert self._settings is not None
        facts: dict[str, Any] = {"best": best, "settings": asdict(self._settings), **lineage.to_json()}
        try:
            write_json(self._folder / LINEAGE_FILE, facts)
            line = [] if best is None else lineage.line_of(best)
            if best is not None and line:
                write_schedule(self._folder / SCHEDULE_FILE, lineage.schedule_of(best), steps=line[-1].end)
        except OSError as error:
            self._cannot_write(error)

    def draw(self, lineage: Lineage, best: int | None) -> None:
        """Draw the picture, if there is anything to be seen, and matplotlib to draw it."""
        if self._folder is None or best is None:
            return
        assert self._settings is not None
        try:
            from lightning_stable.callbacks.population.lineage_picture import draw
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] != "matplotlib":
                raise
            rank_zero_info(f"No {PICTURE_FILE}: it needs matplotlib. pip install 'lightning-stable[recipes]'")
            return
        try:
            draw(lineage, best, self._settings, self._folder / PICTURE_FILE)
        except OSError as error:
            self._cannot_write(error)

    def say(self, lineage: Lineage, best: int | None, score: float | None) -> None:
        """One line on how it ended."""
        if self._settings is None:
            return
        if best is None:
            rank_zero_info(
                "PopulationBasedTraining: no member had the whole of a turn with a finite score, so the last one"
                " stays. Train longer, or with a shorter `interval`."
            )
            return
        generations = len({turn.generation for turn in lineage.turns})
        where = f"; see {LINEAGE_FILE} and {PICTURE_FILE} in {self._folder}" if self._folder is not None else ""
        rank_zero_info(
            f"PopulationBasedTraining: member {best} of {self._settings.population} is the best after {generations}"
            f" generations, {self._settings.monitor} {score:.6g}{where}"
        )

    def _cannot_write(self, error: OSError) -> None:
        rank_zero_warn(
            f"PopulationBasedTraining cannot write to {self._folder} ({error.strerror or error}). The run goes on; give"
            " it a `folder` that it may write to."
        )
        self._folder = None


def save_again(trainer: Trainer) -> None:
    """Write once more the checkpoints that hold the latest model, and not the best of many: it is another one now.

    Example:
        >>> save_again.__name__  # needs a Trainer
        'save_again'
    """
    for callback in callbacks_of(trainer):
        if not isinstance(callback, ModelCheckpoint):
            continue
        paths = [callback.last_model_path] if callback.save_last else []
        if callback.monitor is None and callback.save_top_k == 1:
            paths.append(callback.best_model_path)
        for path in dict.fromkeys(filter(None, paths)):
            if Path(path).is_symlink():
                Path(path).unlink()  # what it points to may be one of the best of many
            trainer.save_checkpoint(path, callback.save_weights_only)
