# SPDX-License-Identifier: Apache-2.0
"""LightningCLI with schedules that step per optimizer step, and with errors instead of tracebacks.

Private attributes: `LightningCLI._get` (a value of the subcommand's config),
`_add_configure_optimizers_method_to_model` (what it calls between model and trainer), `_parse_ckpt_path` (takes
hyperparameters from a checkpoint) and `_prepare_subcommand_kwargs` (what the Trainer's method is called with).
"""

import os
import pkgutil
from collections.abc import Callable, Sequence
from functools import partial, update_wrapper
from pathlib import Path
from types import MethodType
from typing import Any

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.cli import (
    ArgsType,
    LightningArgumentParser,
    LightningCLI,
    SaveConfigCallback,
    instantiate_class,
)
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_summary import get_human_readable_count
from torch.nn.parameter import is_lazy
from torch.optim import Optimizer

from lightning_stable._lightning.command_line.parser import ShortErrorParser
from lightning_stable._lightning.command_line.quiet import quiet
from lightning_stable._lightning.optimizer_setup import groups_of, scheduled
from lightning_stable._lightning.safe_load import safe_load

_CHECKPOINT_KEYWORDS = {"best", "last", "hpc"}


class WrongConfiguration(ValueError):
    """What a class refused once the run had begun, for example an optimizer that cannot be guarded.

    Example:
        >>> str(WrongConfiguration("`SpikeGuard` cannot veto LBFGS."))
        '`SpikeGuard` cannot veto LBFGS.'
    """


class SaveConfigIfPossible(SaveConfigCallback):
    """Saves `config.yaml` next to the logs; a folder that cannot be written to is no reason not to train.

    Example:
        >>> SaveConfigIfPossible.__mro__[1] is SaveConfigCallback
        True
    """

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Save it, or say that it cannot be saved."""
        folder = Path(trainer.log_dir or ".").absolute()
        existing = next(path for path in (folder, *folder.parents) if path.exists())
        if os.access(existing, os.W_OK):
            super().setup(trainer, pl_module, stage)
        else:
            rank_zero_warn(f"config.yaml is not saved: {existing} cannot be written to.")


class StableCLI(LightningCLI):
    """LightningCLI in which every LR schedule steps once per optimizer step.

    - A schedule whose `total_steps` is None gets the number of optimizer steps of the run.
    - `--optimizer` with a weight decay leaves norms and biases without one, as `parameters.param_groups` does.
    - `--optimizer=pytorch_optimizer.Muon`, or another with an AdamW for the rest, gets groups from `optim.muon_groups`.
    - `--lr_scheduler` without `--optimizer` schedules the optimizer that the model configures itself; LightningCLI
      drops such a schedule without a word.
    - `ReduceLROnPlateau` keeps its `monitor` and its pace, once per validation epoch.
    - Checkpoints are loaded with `weights_only=True`, which Lightning leaves out for an URL; and the model is that of
      the configuration, where LightningCLI would import whatever class a checkpoint names.
    - Arguments that a class refuses are reported as the parser reports its own errors: one line, exit status 2.
    - One line on the size of the model takes the place of Lightning's table, whose FLOPs and modes are empty before the
      first batch; `--trainer.enable_model_summary true` has the table.

    Args:
        args: Arguments as on the command line; None takes those of the process.
        **kwargs: As for `LightningCLI`.

    Example:
        >>> issubclass(StableCLI, LightningCLI)
        True
    """

    def __init__(self, args: ArgsType = None, **kwargs: Any) -> None:
        defaults = {
            "save_config_callback": SaveConfigIfPossible,
            "save_config_kwargs": {"overwrite": True},
            "trainer_defaults": {"enable_model_summary": False},
            "parser_class": ShortErrorParser,
        }
        super().__init__(args=args, **{**defaults, **kwargs})

    @staticmethod
    def subcommands() -> dict[str, set[str]]:
        """The two subcommands that the recipes have data for."""
        return {name: {*LightningCLI.subcommands()[name], "weights_only"} for name in ("fit", "validate")}

    def parse_arguments(self, parser: LightningArgumentParser, args: ArgsType) -> None:
        """Parse without LightningCLI's warning that a program's own arguments are not used."""
        self.config = parser.parse_object(args) if isinstance(args, dict) else parser.parse_args(args)  # type: ignore[arg-type]

    def _parse_ckpt_path(self) -> None:
        """Refuse a file that is not a checkpoint of the configured model before anything of it is used."""
        config = self.config[self.config["subcommand"]]
        path = config.get("ckpt_path")
        if path and Path(path).is_file():
            try:
                _check_checkpoint(path, config["model"]["class_path"])
            except (ValueError, OSError) as error:
                self.parser.error(f"--ckpt_path: {error}")
        super()._parse_ckpt_path()

    def _prepare_subcommand_kwargs(self, subcommand: str) -> dict[str, Any]:
        """Load checkpoints, wherever they come from, without running code in them."""
        return {**super()._prepare_subcommand_kwargs(subcommand), "weights_only": True}

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

    def _add_configure_optimizers_method_to_model(self, subcommand: str | None) -> None:
        """Give the optimizer its groups; schedule the model's own when a schedule but no optimizer was given.

        Lightning's method gives every optimizer the plain list of parameters, which some refuse.
        """
        optimizer = self._get(self.config_init, "optimizer")
        schedule = self._get(self.config_init, "lr_scheduler")
        if not optimizer and not schedule:
            return
        make = (
            partial(_instantiate, optimizer=optimizer) if optimizer else partial(_own, self.model.configure_optimizers)
        )
        if optimizer:
            _schedule(make(self.model), schedule)  # what they refuse shows before the run begins
        configure = partial(_configure, make=make, schedule=schedule)
        update_wrapper(configure, self.configure_optimizers)  # Lightning looks at the wrapped function
        self.model.configure_optimizers = MethodType(configure, self.model)  # type: ignore[method-assign]

    def before_fit(self) -> None:
        """Say how large the model is."""
        if not self._get(self.config, "trainer.enable_model_summary"):
            rank_zero_info(_size(self.model))

    @staticmethod
    def configure_optimizers(
        lightning_module: LightningModule, optimizer: Optimizer, lr_scheduler: Any | None = None
    ) -> Any:
        """Pair optimizer and schedule; the schedule steps once per optimizer step."""
        return optimizer if lr_scheduler is None else scheduled(lightning_module, optimizer, lr_scheduler)


def run(arguments: Sequence[str]) -> Trainer:
    """Run `fit ...` or `validate ...` and return its Trainer.

    Args:
        arguments: The command and its options, as on the command line.

    Raises:
        WrongConfiguration: If a class refused what it was given after the run had begun.

    Example:
        >>> run(["fit", "--trainer.max_steps=soon"])
        Traceback (most recent call last):
            ...
        SystemExit: 2
    """
    describe = {
        "fit": {"description": "Train. `--recipe NAME` starts a bundled recipe; options after it override it."},
        "validate": {"description": "Validate. `--recipe NAME` takes model and data of a bundled recipe."},
    }
    try:
        with quiet():
            return StableCLI(list(arguments), parser_kwargs={"prog": "lightning-stable", **describe}).trainer
    except MisconfigurationException as error:
        raise WrongConfiguration(str(error)) from error
    except (ValueError, TypeError, RuntimeError) as error:
        if str(error).startswith("`"):  # the call as the user wrote it: ours say it so
            raise WrongConfiguration(str(error)) from error
        raise


def _check_checkpoint(path: str, model: str) -> None:
    checkpoint = safe_load(path)
    hyperparameters = checkpoint.get("hyper_parameters", {}) if isinstance(checkpoint, dict) else None
    if not isinstance(hyperparameters, dict) or "state_dict" not in checkpoint:
        raise ValueError(f"{path} is not a checkpoint of Lightning.")
    if not all(isinstance(name, str) for name in hyperparameters):
        raise ValueError(f"{path}: the names of hyperparameters must be texts.")
    if (other := hyperparameters.get("_class_path", model)) != model:
        raise ValueError(f"{path} is of the model {other!r}, and the configuration has {model!r}.")


def _size(model: LightningModule) -> str:
    """`CharLM: 366 K parameters`, and how many of them are trained if not all."""
    sizes = [(parameter.numel(), parameter.requires_grad) for parameter in model.parameters() if not is_lazy(parameter)]
    whole, trained = sum(size for size, _ in sizes), sum(size for size, trained in sizes if trained)
    text = f"{type(model).__name__}: {get_human_readable_count(whole).strip()} parameters"
    return text if trained == whole else f"{text}, {get_human_readable_count(trained).strip()} of them trained"


def _configure(model: LightningModule, make: Callable[[LightningModule], Optimizer], schedule: Any) -> Any:
    optimizer = make(model)
    return StableCLI.configure_optimizers(model, optimizer, _schedule(optimizer, schedule))


def _schedule(optimizer: Optimizer, schedule: dict[str, Any] | None) -> Any:
    return instantiate_class(optimizer, schedule) if schedule else None


def _instantiate(model: LightningModule, optimizer: dict[str, Any]) -> Optimizer:
    """The optimizer of the configuration; norms and biases do not decay, and Muon's like get matrices and the rest."""
    weight_decay = optimizer.get("init_args", {}).get("weight_decay")
    return instantiate_class(groups_of(model, pkgutil.resolve_name(optimizer["class_path"]), weight_decay), optimizer)


def _own(configure_optimizers: Callable[[], Any], model: LightningModule) -> Optimizer:
    optimizer = configure_optimizers()
    if not isinstance(optimizer, Optimizer):
        raise MisconfigurationException(
            f"`--lr_scheduler` needs a model whose `configure_optimizers` returns one optimizer, "
            f"{type(model).__name__} returns {type(optimizer).__name__}. Add `--optimizer=AdamW`."
        )
    return optimizer
