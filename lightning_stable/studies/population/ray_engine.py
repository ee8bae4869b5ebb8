# SPDX-License-Identifier: Apache-2.0
"""`lightning-stable fit --engine ray`: the recipe of a `PopulationBasedTraining`, with Ray Tune as its engine.

Every member is a run of its own, on a CPU of its own and a GPU of its own if there are any; Ray decides who copies
whom, by checkpoints, and the rest is the recipe. `RAY_ADDRESS` names a cluster, whose machines must see one folder.
"""

import contextlib
import copy
import io
import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from lightning_stable._lightning.command_line.cli import run
from lightning_stable._lightning.command_line.quiet import quiet
from lightning_stable._lightning.safe_load import safe_load
from lightning_stable.callbacks.population.lineage import write_schedule
from lightning_stable.callbacks.population.settings import Settings
from lightning_stable.files import write_atomically
from lightning_stable.studies.population.ray_member import CHECKPOINT, STEPS, RayMember
from lightning_stable.studies.population.ray_turns import turns_scheduler
from lightning_stable.studies.table import printable

_CALLBACK = "PopulationBasedTraining"
_MEMBER = f"{RayMember.__module__}.{RayMember.__qualname__}"


class NotForRay(ValueError):
    """A configuration that Ray cannot run as a population.

    Example:
        >>> str(NotForRay("`--engine ray` needs a recipe with `PopulationBasedTraining`."))
        '`--engine ray` needs a recipe with `PopulationBasedTraining`.'
    """


def fit(arguments: Sequence[str]) -> int:
    """Train the members of a recipe side by side, and return the exit status.

    Args:
        arguments: Of `lightning-stable fit`, with recipes as `--config`, and without `--engine`.

    Raises:
        NotForRay: If it is not the configuration of a population of a known number of steps.
        ModuleNotFoundError: If Ray is not installed.

    Example:
        >>> fit.__name__  # takes a minute
        'fit'
    """
    config = read_config(arguments)
    settings, member = split_config(config)
    import ray  # what is wrong with the configuration is said first

    folder = _new_folder(config)
    at_home = not os.environ.get("RAY_ADDRESS")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")
    os.environ.setdefault("TUNE_FUNCTION_THREAD_TIMEOUT_S", "60")  # seconds in which a run that is paused must end
    alone: dict[str, Any] = {"include_dashboard": False, "log_to_driver": False} if at_home else {}
    ray.init(**alone)
    try:
        results = _tune(settings, member, folder)
        return _say(results, settings, folder)
    finally:
        ray.shutdown()


def read_config(arguments: Sequence[str]) -> dict[str, Any]:
    """What the command line says, all of it together, as plain types.

    Args:
        arguments: Of `lightning-stable fit`.

    Example:
        >>> read_config(["--model=DigitsClassifier", "--trainer.max_steps=8"])["trainer"]["max_steps"]
        8
    """
    said = io.StringIO()
    with contextlib.redirect_stdout(said):
        try:
            run(["fit", *arguments, "--print_config"])
        except SystemExit as stop:
            if stop.code not in (None, 0):
                raise
    return yaml.safe_load(said.getvalue())


def split_config(config: dict[str, Any]) -> tuple[Settings, dict[str, Any]]:
    """The search, and the configuration of one member, whose steps are its part of all steps.

    Args:
        config: As `read_config` returns it.

    Raises:
        NotForRay: If there is no search in it, or no number of steps that is a turn for each member.

    Example:
        >>> split_config({"trainer": {"callbacks": None, "max_steps": 8}})
        Traceback (most recent call last):
            ...
        lightning_stable.studies.population.ray_engine.NotForRay: `--engine ray` needs a recipe with ...
    """
    member = copy.deepcopy(config)
    trainer = member["trainer"]
    callbacks = trainer.get("callbacks") or []
    found = [callback for callback in callbacks if callback["class_path"].rpartition(".")[2] == _CALLBACK]
    if len(found) != 1:
        raise NotForRay(f"`--engine ray` needs a recipe with one `{_CALLBACK}`, as digits_pbt has, got {len(found)}.")
    settings = _settings(found[0].get("init_args") or {})
    if trainer.get("max_steps", -1) < settings.population:
        raise NotForRay(
            f"`--engine ray` needs `--trainer.max_steps`, the steps of all {settings.population} members together, got"
            f" {trainer.get('max_steps', -1)}."
        )
    steps = trainer["max_steps"] // settings.population
    if steps < settings.interval:
        raise NotForRay(
            "`--engine ray` needs at least one turn for each member:"
            f" `--trainer.max_steps={trainer['max_steps']}` for a `population` of {settings.population} is {steps}"
            f" steps a member, fewer than the `interval` of {settings.interval}; `--trainer.max_steps` must be at least"
            f" {settings.population * settings.interval}."
        )
    trainer["callbacks"] = [callback for callback in callbacks if callback is not found[0]]
    trainer["max_steps"] = steps
    trainer["enable_progress_bar"] = False
    trainer["enable_checkpointing"] = True  # `RayMember` saves them
    return settings, member


def train_member(
    values: dict[str, float], member: dict[str, Any], interval: int, monitor: str, mode: str, checkpoint: str | None
) -> None:
    """One member's run, in a process of Ray's.

    Args:
        values: Its hyper-parameters.
        member: Its configuration.
        interval: Optimizer steps of a turn.
        monitor: What it is judged by.
        mode: `min` or `max`, what is better.
        checkpoint: The folder of the checkpoint from which it goes on, if there is one.

    Example:
        >>> train_member.__name__  # needs a session of Ray Tune
        'train_member'
    """
    own = copy.deepcopy(member)
    arguments = {"hyperparameters": dict(values), "interval": interval, "monitor": monitor, "mode": mode}
    own["trainer"]["callbacks"].append({"class_path": _MEMBER, "init_args": arguments})
    own["ckpt_path"] = None if checkpoint is None else str(Path(checkpoint, CHECKPOINT))
    path = Path("member.yaml").absolute()
    write_atomically(path, yaml.safe_dump(own, sort_keys=False).encode())
    with quiet():
        run(["fit", f"--config={path}"])


def _settings(arguments: dict[str, Any]) -> Settings:
    search, choices = arguments.get("search") or {}, arguments.get("choices") or {}
    if not search and not choices:
        raise NotForRay(f"`--engine ray` needs to be told what `{_CALLBACK}` is to search: set `search` or `choices`.")
    return Settings(
        population=arguments["population"],
        interval=arguments["interval"],
        ranges=search,
        choices=choices,
        initial=arguments.get("initial") or [],
        monitor=arguments["monitor"],
        mode=arguments["mode"],
        fraction=arguments["fraction"],
        seed=arguments["seed"],
    )


def _tune(settings: Settings, member: dict[str, Any], folder: Path) -> Any:
    import torch
    from ray import tune
    from ray.tune.search.basic_variant import BasicVariantGenerator

    def trainable(config: dict[str, float]) -> None:
        saved = tune.get_checkpoint()
        arguments = (member, settings.interval, settings.monitor, settings.mode)
        if saved is None:
            train_member(config, *arguments, None)
        else:
            with saved.as_directory() as checkpoint:
                train_member(config, *arguments, checkpoint)

    def within_range(config: dict[str, float]) -> dict[str, float]:
        for name, (low, high) in settings.ranges.items():
            config[name] = min(max(config[name], low), high)
        return config

    has_gpu = torch.cuda.is_available() and member["trainer"].get("accelerator") != "cpu"
    scheduler = turns_scheduler(  # in turns, so that members without a CPU of their own get theirs, too
        time_attr=STEPS,
        perturbation_interval=settings.interval,
        hyperparam_mutations=_mutations(settings),
        quantile_fraction=settings.fraction,
        custom_explore_fn=within_range,
    )
    beginnings = [settings.beginning(number) for number in range(settings.population)]
    tuner = tune.Tuner(
        tune.with_resources(trainable, {"cpu": 1, "gpu": int(has_gpu)}),
        param_space={name: tune.uniform(0.0, 1.0) for name in settings.space.names},  # all are given below
        tune_config=tune.TuneConfig(
            metric=settings.monitor,
            mode=settings.mode,
            scheduler=scheduler,
            search_alg=BasicVariantGenerator(points_to_evaluate=beginnings, random_state=settings.seed),
            num_samples=settings.population,
            reuse_actors=True,  # else every turn would begin with the start of a process
        ),
        run_config=tune.RunConfig(name=folder.name, storage_path=str(folder.parent), verbose=int(sys.stdout.isatty())),
    )
    return tuner.fit()


def _mutations(settings: Settings) -> dict[str, Any]:
    from ray import tune

    ranges = {
        name: tune.loguniform(low, high) if low > 0 else tune.uniform(low, high)
        for name, (low, high) in settings.ranges.items()
    }
    return {**ranges, **{name: list(values) for name, values in settings.choices.items()}}


def _say(results: Any, settings: Settings, folder: Path) -> int:
    for error in results.errors:
        print(f"lightning-stable: a member failed: {printable(str(error).strip().splitlines()[-1])}", file=sys.stderr)
    for number, result in enumerate(results):
        metrics = result.metrics or {}
        print(f"member {number}: {settings.monitor} {metrics.get(settings.monitor)} after {metrics.get(STEPS)} steps")
    running = [result for result in results if result.error is None]
    finished = [result for result in running if (result.metrics or {}).get("done")]
    if len(finished) < len(running):  # after Ctrl-C Ray returns as if nothing had been
        print(f"lightning-stable: broken off: {len(finished)} of {len(results)} members came to their end, so none is"
              f" chosen; their last checkpoints are in {folder}", file=sys.stderr)  # fmt: skip
        return 130
    told = [result for result in finished if result.checkpoint is not None and STEPS in result.metrics]
    if not told:
        print("lightning-stable: no member has ended a turn, so none is chosen", file=sys.stderr)
        return 1
    _keep_best(told, settings, folder)
    return int(bool(results.errors))


def _keep_best(finished: Sequence[Any], settings: Settings, folder: Path) -> None:
    best = (min if settings.mode == "min" else max)(finished, key=lambda one: one.metrics[settings.monitor])
    with best.checkpoint.as_directory() as checkpoint:
        write_atomically(folder / "best.ckpt", Path(checkpoint, CHECKPOINT).read_bytes())
    segments = safe_load(folder / "best.ckpt")["callbacks"][RayMember.__qualname__]["segments"]
    write_schedule(folder / "schedule.json", segments, steps=best.metrics[STEPS])
    print(f"\nThe best came to {settings.monitor} {best.metrics[settings.monitor]:.6g} with, at the end,"
          f" {json.dumps(segments[-1]['hyperparameters'])}.")  # fmt: skip
    print(f"Its weights and its schedule:  {folder / 'best.ckpt'}  {folder / 'schedule.json'}")


def _new_folder(config: dict[str, Any]) -> Path:
    """A folder beside the runs of the recipe, made now."""
    logger = config["trainer"].get("logger")
    arguments = logger.get("init_args", {}) if isinstance(logger, dict) else {}
    parent = Path(arguments.get("save_dir") or "runs", arguments.get("name") or "pbt").absolute()
    number = 0
    while True:
        try:
            folder = parent / f"ray_{number}"
            folder.mkdir(parents=True)
            return folder
        except FileExistsError:
            number += 1
