# SPDX-License-Identifier: Apache-2.0
"""Search schedules of hyper-parameters while a population trains, in one run."""

import copy
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_stable._lightning.missed_validation import run_missed_validation
from lightning_stable.callbacks.population.hyperparameters import Hyperparameters
from lightning_stable.callbacks.population.members import Members
from lightning_stable.callbacks.population.population import Population
from lightning_stable.callbacks.population.records import Records, save_again
from lightning_stable.callbacks.population.refusals import refuse_schedules, refuse_trainer
from lightning_stable.callbacks.population.settings import Settings
from lightning_stable.snapshots.random_state import RandomState

_CALL = "PopulationBasedTraining(search=...)"
_AROUND_THE_LR = (0.1, 10.0)  # of the optimizer's own, where nothing else is said


class PopulationBasedTraining(Callback):
    """Trains several members in turn in one `fit`; the worst copy the best, and try other hyper-parameters.

        turn:        one member takes `interval` optimizer steps, is scored, and the next one takes its place
        generation:  all P members have had a turn; then, with n = max(1, floor(fraction P)),
        exploit:     each of the n worst, and each without a finite score, copies weights, optimizer state and
                     hyper-parameters of a random one of the n best
        explore:     each hyper-parameter h of such a copy becomes 0.8 h or 1.2 h, with equal chance, within its range,
                     or with probability 0.25 a new draw from it; of choices, the next one up or down

    Paper: Jaderberg et al., "Population Based Training of Neural Networks" (2017).

    Deviations: one machine instead of a worker for each member, so generations are synchronous. All members begin from
    the same weights. They read on from one stream of data, and of random numbers: every batch is trained on by one
    member, no batch is kept, and a resume is exact. Values stay within the searched range. Members without a finite
    score are all replaced, however many they are. The turns of one member are some time apart.

    Steps: `Trainer(max_steps=...)` and `max_epochs`, `trainer.global_step`, loggers and checkpoints count the steps of
    all members. Each takes max_steps / P of them, and its schedules step in its own turns only: give them
    `total_steps` = max_steps / P. To score with a validation, let it come at the end of turns,
    `Trainer(val_check_interval=interval, check_val_every_n_epoch=None)` (in batches); a turn lasts until the first
    validation after `interval` steps. Means over an epoch, random numbers and `EarlyStopping` are the run's; the state
    of all other callbacks belongs to a member.

    In the end the best member is in the module, and in the checkpoints of a `ModelCheckpoint` that keeps the latest.
    `pbt.json` has all turns and copies, `pbt.png` shows them, and `schedule.json` holds the hyper-parameters on the
    line of the best, which `ReplayPopulation` follows. Logs `stability/pbt/score/<member>` and
    `stability/pbt/<name>/<member>` after every turn. A checkpoint holds all members, P times what it held alone; so
    does the memory of the host.

    Args:
        search: From a hyper-parameter to its smallest and largest value; log-uniform between positive ones, else
            uniform. `lr` is the base rate of schedules, with `OneCycleLR` and `CyclicLR` their `max_lr`, and groups
            keep their ratios; others are `weight_decay`, `momentum`, `betas.0`, or any number in the optimizer's
            groups, and `module.<name>` for a number that is an attribute of the LightningModule or, dotted, of a module
            in it. By default `lr`, from a tenth to ten times what the optimizer has, if there are no `choices` either.
        choices: From a hyper-parameter to the values there are, in the order in which they are neighbours.
        population: Members, at least 2. Default: 4, for one machine; the paper has 20 to 80.
        interval: Optimizer steps of a turn. A member should recover from a copy within it.
        monitor: The key that members are judged by, logged in training with `on_step=True` (its mean over the turn) or
            in validation. Default: `loss`, the mean training loss of the turn; a validation knows better.
        mode: `min` or `max`, what is better.
        fraction: How many of the population give up, and how many are copied; at least one. Default: the paper's 0.2.
        initial: What the first members begin with, in place of a draw.
        seed: Of all draws; the global generators are left alone.
        max_bytes: What the members may take together; `None` does not limit it.
        folder: Where the files go. `None` is the logger's folder; without a logger nothing is written then.

    Raises:
        ValueError: If an argument is out of its bounds, or, from `fit`, if there is no hyper-parameter of a name, the
            members take more than `max_bytes`, `monitor` is not logged in a turn, or a checkpoint is of another
            population.
        RuntimeError: From `fit`, with manual optimization or several processes.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> search = PopulationBasedTraining({"lr": [1e-4, 1e-1]}, interval=100, monitor="val_loss")
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> times = dict(max_steps=4000, val_check_interval=100, check_val_every_n_epoch=None)
        >>> trainer = Trainer(callbacks=[search], accelerator="cpu", **times, **quiet)
    """

    def __init__(
        self,
        search: dict[str, list[float]] | None = None,
        choices: dict[str, list[float]] | None = None,
        population: int = 4,
        interval: int = 100,
        monitor: str = "loss",
        mode: Literal["min", "max"] = "min",
        fraction: float = 0.2,
        initial: list[dict[str, float]] | None = None,
        seed: int = 0,
        max_bytes: int | None = None,
        folder: str | None = None,
    ) -> None:
        super().__init__()
        if max_bytes is not None and (isinstance(max_bytes, bool) or not max_bytes >= 0):
            raise ValueError(f"`PopulationBasedTraining(max_bytes=...)` must be at least 0 or None, got {max_bytes}.")
        self._has_search = bool(search or choices)
        ranges = dict(search or {}) if self._has_search else {"lr": list(_AROUND_THE_LR)}
        self.settings = Settings(
            population, interval, ranges, dict(choices or {}), list(initial or []), monitor, mode, fraction, seed
        )
        self._of_the_run = self.settings
        self._hyperparameters: Hyperparameters | None = None
        self._max_bytes = max_bytes
        self._folder = folder
        self._population: Population | None = None
        self._records = Records(None, None)
        self._best: int | None = None  # of a run that is over
        self._state: dict[str, Any] = {}  # of a checkpoint, or of a run that is over
        self._random: RandomState | None = None  # of a checkpoint, until the run goes on from there

    @property
    def best(self) -> int | None:
        """The member with the best score so far, or of the last `fit`, if anybody has one."""
        return self._best if self._population is None else self._population.best

    # Beginning and end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Refuse what cannot work, before anything has run; a checkpoint is loaded after this."""
        if stage != "fit":
            return
        refuse_trainer(trainer, pl_module, self)
        self._state, self._random, self._best = {}, None, None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find what is searched, before a checkpoint changes it."""
        self._of_the_run = self._settings_of_the_run(trainer, pl_module)
        names = self._of_the_run.space.names
        self._hyperparameters = Hyperparameters(_CALL, names, trainer, pl_module)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the members, or take them up from a checkpoint."""
        settings, hyperparameters = self._of_the_run, self._hyperparameters
        assert hyperparameters is not None
        refuse_schedules(trainer, settings.population, settings.interval)
        members = Members(trainer, pl_module, self, settings.population, self._max_bytes)
        population = Population(trainer, pl_module, settings, members, hyperparameters)
        if self._state:
            try:
                population.go_on(self._state)
            except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
                raise ValueError(
                    f"`PopulationBasedTraining` cannot go on from this checkpoint: {error}. Resume with the model and"
                    " the arguments of the run that wrote it."
                ) from error
        if self._random is not None:
            self._random.restore()
        self._population, self._state, self._random = population, {}, None
        folder = self._folder or (trainer.log_dir if trainer.loggers else None)
        self._records = Records(folder, settings)
        if population.turn.waits_for_validation:  # the checkpoint was written just before it
            run_missed_validation(trainer)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Put the best member into the module, and write what has been found."""
        if self._population is None:
            return
        lineage, best = self._population.lineage, self._population.end()
        self._records.write(lineage, best)
        self._records.draw(lineage, best)
        self._records.say(lineage, best, None if best is None else self._population.standings[best].score)
        save_again(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Write what has been found so far; a checkpoint that is saved after this can be resumed."""
        if self._population is not None:
            self._records.write(self._population.lineage, self._population.best)
            self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let go of the trainer; what a checkpoint needs is kept."""
        if stage == "fit":
            self._leave()

    # One step

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Let the next member take its turn, if that of the last one is over."""
        if self._population is not None and self._population.begin_batch():
            self._records.write(self._population.lineage, self._population.best)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Note the loss, and whether the turn is over."""
        if self._population is not None:
            self._population.turn.end_batch(outputs)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Take the score."""
        if self._population is not None and not trainer.sanity_checking:
            self._population.turn.end_validation()

    # The checkpoint

    def state_dict(self) -> dict[str, Any]:
        """All members, where they are, and the random numbers that the run goes on with."""
        if self._population is None:
            return copy.deepcopy(self._state)
        state = self._population.state_dict()
        return {**state, "random": RandomState().state_dict()} if state else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up `state_dict`, when training starts."""
        if not state_dict:
            return
        try:
            self._random = RandomState.from_state_dict(state_dict["random"])
        except (ValueError, TypeError, KeyError, IndexError, AttributeError, RuntimeError) as error:
            raise ValueError(
                f"The checkpoint's state of `PopulationBasedTraining` is damaged: {error!r} in its random numbers."
            ) from error
        self._state = copy.deepcopy(state_dict)

    # What the hooks are made of

    def _settings_of_the_run(self, trainer: Trainer, pl_module: LightningModule) -> Settings:
        """With a range around the optimizer's learning rate where the user has set none."""
        if self._has_search:
            return self.settings
        lr = Hyperparameters(_CALL, ["lr"], trainer, pl_module).read()["lr"]
        ranges = {"lr": [factor * lr for factor in _AROUND_THE_LR]}
        return Settings(**{**vars(self.settings), "ranges": ranges})

    def _leave(self) -> None:
        self._hyperparameters = None
        if self._population is not None:
            self._best = self._population.best
            self._state, self._population = self.state_dict(), None
