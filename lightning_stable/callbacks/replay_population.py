# SPDX-License-Identifier: Apache-2.0
"""Train with the schedule of hyper-parameters that a population has found."""

from bisect import bisect_right
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_stable.callbacks.population.hyperparameters import Hyperparameters
from lightning_stable.callbacks.population.lineage import read_schedule


class ReplayPopulation(Callback):
    """Sets the hyper-parameters of the best line of a population, each from its step on.

        h(step) = h_i  for  s_i <= step < s_(i+1),  s_0 = 0,  the last one to the end;  step = trainer.global_step

    Paper: Jaderberg et al., "Population Based Training of Neural Networks" (2017), section 4: what a population has
    found is a schedule, and most of the gain is in the schedule.

    Deviations: none. As in the search, `lr` is the base rate (the `max_lr` of `OneCycleLR` and `CyclicLR`): the run's
    own schedules multiply it, and parameter groups keep their ratios. There is nothing to be saved, since the step says
    all.

    Args:
        path: The `schedule.json` of `PopulationBasedTraining`. It is read when `fit` starts; `None`, the default,
            follows nothing.

    Raises:
        ValueError: From `fit`, if the file is no such schedule, or if there is no hyper-parameter of a name.
        OSError: From `fit`, if it cannot be read.
        RuntimeError: From `fit`, with manual optimization and several optimizers.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(callbacks=[ReplayPopulation("schedule.json")], accelerator="cpu", **quiet)
    """

    def __init__(self, path: str | None = None) -> None:
        super().__init__()
        self.path = path
        self._steps: list[int] = []
        self._values: list[dict[str, float]] = []
        self._hyperparameters: Hyperparameters | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Read the schedule, and find what it sets, before a checkpoint changes it."""
        if self.path is None:
            return
        if len(trainer.optimizers) != 1:
            raise RuntimeError(
                f"`ReplayPopulation` sets hyper-parameters of one optimizer, and there are {len(trainer.optimizers)}."
            )
        segments = read_schedule(self.path)
        self._steps, self._values = [step for step, _ in segments], [values for _, values in segments]
        call = f"ReplayPopulation(path={self.path!r})"
        self._hyperparameters = Hyperparameters(call, self._values[0], trainer, pl_module)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set what is in force at this step; nothing changes where it is set already."""
        if self._hyperparameters is not None:
            self._hyperparameters.write(self._values[bisect_right(self._steps, trainer.global_step) - 1])

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the optimizer."""
        self._hyperparameters = None
