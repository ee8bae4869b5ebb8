# SPDX-License-Identifier: Apache-2.0
"""LightningCLI with schedules that step per optimizer step, and with errors instead of tracebacks.

Private attributes: `LightningCLI._get` (a value of the subcommand's config).
"""

import math
from collections.abc import Sequence
from functools import partial, update_wrapper
from pathlib import Path
from types import MethodType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import ArgsType, LightningArgumentParser, LightningCLI, ReduceLROnPlateau, instantiate_class
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch.optim import Optimizer

_CHECKPOINT_KEYWORDS = {"best", "last", "hpc"}


class StableCLI(LightningCLI):
    """LightningCLI in which every LR schedule steps once per optimizer step.

    - A schedule whose `total_steps` is None gets the number of optimizer steps of the run.
    - `--lr_scheduler` without `--optimizer` schedules the optimizer that the model configures itself; LightningCLI
      drops such a schedule without a word.
    - `ReduceLROnPlateau` keeps its `monitor` and its pace, once per validation epoch.
    - Arguments that a class refuses are reported as the parser reports its own errors: one line, exit status 2.

    Args:
        args: Arguments as on the command line; None takes those of the process.
        **kwargs: As for `LightningCLI`.

    Example:
        >>> issubclass(StableCLI, LightningCLI)
        True
    """

    def __init__(self, args: ArgsType = None, **kwargs: Any) -> None:
        super().__init__(args=args, **{"save_config_kwargs": {"overwrite": True}, **kwargs})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The two subcommands that the recipes have data for."""
        return {name: LightningCLI.subcommands()[name] for name in ("fit", "validate")}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without LightningCLI's warning that a program's own arguments are not used."""
        self.config = parser.parse_object(args) if isinstance(args, dict) else parser.parse_args(args)  # type: ignore[arg-type]

    def before_instantiate_classes(self) -> None:
        """Refuse a checkpoint that is not there before anything is built."""
        path = self._get(self.config, "ckpt_path")
        if path and str(path) not in _CHECKPOINT_KEYWORDS and ":" not in str(path) and not Path(path).exists():
            self.parser.error(f"--ckpt_path {path}: no such checkpoint.")

    def instantiate_classes(self) -> None:
        """Build model, data and trainer; what their classes refuse is a mistake in the configuration."""
        try:
            super().instantiate_classes()
        except (ValueError, TypeError, MisconfigurationException) as error:
            self.parser.error(str(error), error)

    def after_instantiate_classes(self) -> None:
        """Schedule the model's own optimizer when a schedule but no optimizer was given."""
        schedule = self._get(self.config_init, "lr_scheduler")
        if schedule and not self._get(self.config_init, "optimizer"):
            configure = partial(_configure_with_schedule, own=self.model.configure_optimizers, schedule=schedule)
            update_wrapper(configure, self.configure_optimizers)  # Lightning looks at the wrapped function
            self.model.configure_optimizers = MethodType(configure, self.model)  # type: ignore[method-assign]

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule, optimizer: Optimizer, lr_scheduler: Any | None = None
    ) -> Any:
        """Pair optimizer and schedule; the schedule steps once per optimizer step."""
        if lr_scheduler is None:
            return optimizer
        if isinstance(lr_scheduler, ReduceLROnPlateau):
            return {
                "optimizer": optimizer,
                "lr_scheduler": {"scheduler": lr_scheduler, "monitor": lr_scheduler.monitor},
            }
        if getattr(lr_scheduler, "total_steps", 0) is None:
            lr_scheduler.total_steps = _total_steps(lightning_module.trainer, type(lr_scheduler).__name__)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": lr_scheduler, "interval": "step"}}


def run(arguments: Sequence[str]) -> Trainer:
    """Run `fit ...` or `validate ...` and return its Trainer.

    Args:
        arguments: The command and its options, as on the command line.

    Example:
        >>> trainer = run(["fit", "--config", "my.yaml"])  # doctest: +SKIP
    """
    describe = {
        "fit": {"description": "Train. `--recipe NAME` starts a bundled recipe; options after it override it."},
        "validate": {"description": "Validate. `--recipe NAME` takes model and data of a bundled recipe."},
    }
    return StableCLI(list(arguments), parser_kwargs={"prog": "lightning-stable", **describe}).trainer


def _configure_with_schedule(model: LightningModule, own: Any, schedule: dict[str, Any]) -> Any:
    optimizer = own()
    if not isinstance(optimizer, Optimizer):
        raise MisconfigurationException(
            f"`--lr_scheduler` needs a model whose `configure_optimizers` returns one optimizer, "
            f"{type(model).__name__} returns {type(optimizer).__name__}. Add `--optimizer=AdamW`."
        )
    return StableCLI.configure_optimizers(model, optimizer, instantiate_class(optimizer, schedule))


def _total_steps(trainer: Trainer, schedule: str) -> int:
    steps = trainer.estimated_stepping_batches
    if not math.isfinite(steps):
        raise MisconfigurationException(
            f"`{schedule}(total_steps=None)` takes the length of the run, which has no end here. "
            "Set `--trainer.max_steps`, `--trainer.max_epochs` or `--lr_scheduler.total_steps`."
        )
    return int(steps)
