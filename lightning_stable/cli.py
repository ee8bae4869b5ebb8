# SPDX-License-Identifier: Apache-2.0
"""The command line: `lightning-stable list | show | fit | validate | report | detect | refine | techniques | bench`.

`list`, `show`, `report` and whatever is wrong with a command answer at once; all else imports torch.
"""

import errno
import sys
from collections.abc import Callable, Sequence
from importlib import import_module
from pkgutil import iter_modules

import lightning_stable
from lightning_stable import __version__
from lightning_stable.studies.recipes import Recipe, UnknownRecipe, find_recipe, list_parts, list_recipes

_USAGE = f"""\
usage: lightning-stable COMMAND [ARGUMENTS]

Keep PyTorch Lightning runs alive: recipes to run, and reports on what happened.

commands:
  list                       the bundled recipes, one line each
  show NAME                  print the YAML of a recipe; save it, change it, run it with `fit --config`
  fit --recipe NAME          train with a bundled recipe
  fit --config FILE          train with your own YAML
  fit --recipe digits_pbt --engine ray
                             a population's members side by side, with Ray Tune
  validate --recipe NAME     validate, for example with --ckpt_path runs/NAME/version_0/checkpoints/last.ckpt
  report RUN_DIR             incidents and final metrics as tables, and RUN_DIR/report.png
  detect --values FILE --column NAME
                             which alarms detectors raise on any logged curve, their thresholds, and detect.png
  refine RUN_DIR             the learning-rate schedule that a run's gradient norms ask for, for the next run
  techniques                 every public class and function, with one line on each
  study NAME                 many runs, one question, one table: `lightning-stable study --help` lists the questions
  bench overhead             what the callbacks cost per step
  bench guard                what the guard costs, and what a rollback saves
  bench optimizers           what a step of the optimizers costs, in time and memory
  bench detectors            what the detectors find in labelled curves, and how often they are wrong

options:
  -h, --help                 this text; `lightning-stable COMMAND --help` says more
  --version                  print the version

`fit` and `validate` take every LightningCLI option, and every class of this package by its short name:
  lightning-stable fit --recipe charlm_adamw --trainer.callbacks+=SpikeGuard \\
      --lr_scheduler=ProfileLR --lr_scheduler.profile=Cosine --lr_scheduler.warmup_steps=40

lightning-stable {__version__}
"""

_LIST_USAGE = "usage: lightning-stable list\n\nList the bundled recipes: name, what it shows, needs, about how long.\n"
_SHOW_USAGE = "usage: lightning-stable show NAME\n\nPrint the YAML of the bundled recipe NAME.\n"
_BENCH_USAGE = """\
usage: lightning-stable bench MEASUREMENT [ARGUMENTS]

measurements:
  overhead      what the callbacks cost per step
  guard         what the guard costs: its steps, its snapshots, a rollback instead of a restart
  optimizers    what a step of the optimizers costs, in time and memory; ratios to torch's AdamW
  detectors     what the detectors find in labelled curves, and how often they are wrong
"""
_MEASUREMENTS = ("overhead", "guard", "optimizers", "detectors")  # modules of `lightning_stable.bench`
_NOT_FOR_CONFIGS = ("bench", "studies")
_CANNOT_WRITE = (errno.EACCES, errno.EDQUOT, errno.ENOSPC, errno.EROFS)
_EXTRAS = {"matplotlib": "recipes", "rich": "recipes", "sklearn": "recipes", "optuna": "studies", "ray": "ray"}
_ENGINES = ("local", "ray")


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command and return the exit status: 0 done, 1 the run failed, 2 the command line is wrong.

    Args:
        argv: The arguments after the program's name; None takes those of the process.

    Example:
        >>> main(["--version"])
        lightning-stable 0.1.0
        0
    """
    arguments = list(sys.argv[1:] if argv is None else argv)
    command = arguments.pop(0) if arguments else "--help"
    try:
        return _run(command, arguments)
    except UnknownRecipe as error:
        return _wrong(str(error))
    except SystemExit as stop:  # how a parser ends after it has said what is wrong, or printed its help
        if stop.code is None or isinstance(stop.code, int):
            return stop.code or 0
        raise
    except ModuleNotFoundError as error:
        extra = _EXTRAS.get((error.name or "").partition(".")[0])
        if extra is None:
            raise
        return _wrong(f"this needs {error.name}: pip install 'lightning-stable[{extra}]'")
    except KeyboardInterrupt:
        print("\nlightning-stable: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # `lightning-stable show NAME | head`
        sys.stderr.close()
        return 0
    except OSError as error:
        if error.errno not in _CANNOT_WRITE:
            raise
        return _cannot_write(f"{error.strerror}: {error.filename2 or error.filename or 'a log or a checkpoint'}")


def _run(command: str, arguments: list[str]) -> int:
    if command in ("-h", "--help", "help"):
        print(_USAGE, end="")
        return 0
    if command == "--version":
        print(f"lightning-stable {__version__}")
        return 0
    if command not in _COMMANDS:
        return _wrong(f"there is no command {command!r}; the commands are {', '.join(_COMMANDS)}")
    return _COMMANDS[command](arguments)


def _list(arguments: list[str]) -> int:
    if _asks_for_help(arguments):
        print(_LIST_USAGE, end="")
        return 0
    if arguments:
        return _wrong(f"`list` takes no arguments, got {' '.join(arguments)}")
    recipes = list_recipes()
    width = max((len(recipe.name) for recipe in recipes), default=0)
    for recipe in recipes:
        print(f"{recipe.name:<{width}}  {recipe.shows} (needs {recipe.needs}; {recipe.takes})")
    print("\nStart one: lightning-stable fit --recipe NAME")
    parts = ", ".join(_name(part) for part in list_parts())
    print(f"With another optimizer: lightning-stable fit --recipe NAME --recipe PART, where PART is one of {parts}")
    return 0


def _show(arguments: list[str]) -> int:
    if _asks_for_help(arguments):
        print(_SHOW_USAGE, end="")
        return 0
    if len(arguments) != 1:
        return _wrong(f"`show` takes the name of one recipe; they are {', '.join(map(_name, list_recipes()))}")
    print(find_recipe(arguments[0]).path.read_text(encoding="utf-8"), end="")
    return 0


def _fit(arguments: list[str]) -> int:
    engine, arguments = _take_engine(arguments)
    if engine not in _ENGINES:
        return _wrong(f"`--engine` is one of {', '.join(_ENGINES)}, got {engine!r}")
    return _fit_with_ray(arguments) if engine == "ray" else _lightning("fit", arguments)


def _fit_with_ray(arguments: list[str]) -> int:
    arguments = _recipes_to_configs(arguments)

    from lightning_stable.studies.population.ray_engine import NotForRay, fit

    _import_rooms()
    try:
        return fit(arguments)
    except NotForRay as error:
        return _wrong(str(error))


def _take_engine(arguments: list[str]) -> tuple[str, list[str]]:
    """What trains a population, and the other arguments."""
    others, engine = list(arguments), "local"
    for position, argument in enumerate(arguments):
        if argument == "--engine":
            engine = "".join(arguments[position + 1 : position + 2])
            del others[position : position + 2]
        elif argument.startswith("--engine="):
            engine = argument.partition("=")[2]
            del others[position]
    return engine, others


def _validate(arguments: list[str]) -> int:
    return _lightning("validate", arguments)


def _lightning(command: str, arguments: list[str]) -> int:
    if not arguments:
        return _wrong(f"`{command}` needs `--recipe NAME` (`lightning-stable list` has the names) or `--config FILE`")
    arguments = _recipes_to_configs(arguments)

    from lightning.pytorch.utilities.exceptions import SIGTERMException

    from lightning_stable._lightning.command_line.cli import WrongConfiguration, run
    from lightning_stable._lightning.trainer import callbacks_of
    from lightning_stable.guard import SpikeGuard, TrainingHalted

    _import_rooms()
    try:
        trainer = run([command, *arguments])
    except TrainingHalted as halt:
        print(f"\n{halt.report}", file=sys.stderr)
        return 1
    except SIGTERMException:  # a scheduler must not take the run for finished
        print("\nlightning-stable: terminated", file=sys.stderr)
        return 143
    except WrongConfiguration as error:
        return _wrong(str(error))
    folder = trainer.log_dir  # asked on all ranks, as the Trainer answers none of them alone
    guarded = any(isinstance(callback, SpikeGuard) for callback in callbacks_of(trainer))  # it says this itself
    if command == "fit" and trainer.is_global_zero and trainer.logger is not None:
        if not guarded:
            print(f"\nLook at it:  tensorboard --logdir {trainer.logger.save_dir}")
        print(f"Report:      lightning-stable report {folder}")
    return 0


def _import_rooms() -> None:
    """Import every room of techniques, so that the parser knows its classes by their short names."""
    for room in iter_modules(lightning_stable.__path__):
        if room.ispkg and not room.name.startswith("_") and room.name not in _NOT_FOR_CONFIGS:
            import_module(f"lightning_stable.{room.name}")


def _recipes_to_configs(arguments: list[str]) -> list[str]:
    """Turn `--recipe NAME` into `--config PATH`, put first so that what else is said overrides the recipe."""
    configs: list[str] = []
    others: list[str] = []
    remaining = iter(arguments)
    for argument in remaining:
        flag, equals, name = argument.partition("=")
        if flag != "--recipe":
            others.append(argument)
            continue
        recipe = find_recipe(name if equals else next(remaining, ""))
        configs += ["--config", str(recipe.path)]
    return configs + others


def _report(arguments: list[str]) -> int:
    from lightning_stable.studies.run_report import main as report

    return report(arguments)


def _detect(arguments: list[str]) -> int:
    from lightning_stable.studies.replay_report import main as detect

    return detect(arguments)


def _refine(arguments: list[str]) -> int:
    from lightning_stable.studies.refinement import main as refine

    return refine(arguments)


def _techniques(arguments: list[str]) -> int:
    from lightning_stable.studies.techniques import main as techniques

    return techniques(arguments)


def _study(arguments: list[str]) -> int:
    from lightning_stable.studies.study_command import main as study

    return study(arguments)


def _bench(arguments: list[str]) -> int:
    if _asks_for_help(arguments[:1]):
        print(_BENCH_USAGE, end="")
        return 0
    if not arguments or arguments[0] not in _MEASUREMENTS:
        return _wrong(f"`bench` takes the name of a measurement: {', '.join(_MEASUREMENTS)}")
    return import_module(f"lightning_stable.bench.{arguments[0]}").main(arguments[1:])


def _asks_for_help(arguments: list[str]) -> bool:
    return "-h" in arguments or "--help" in arguments


def _name(recipe: Recipe) -> str:
    return recipe.name


def _cannot_write(why: str) -> int:
    print(
        f"\nlightning-stable: the run ended because it could not write: {why}\n"
        "Make room there, or write elsewhere: start it in another folder, or"
        " set `--trainer.logger.init_args.save_dir`.",
        file=sys.stderr,
    )
    return 1


def _wrong(message: str) -> int:
    print(f"lightning-stable: {message}", file=sys.stderr)
    return 2


_COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "list": _list,
    "show": _show,
    "fit": _fit,
    "validate": _validate,
    "report": _report,
    "detect": _detect,
    "refine": _refine,
    "techniques": _techniques,
    "study": _study,
    "bench": _bench,
}

if __name__ == "__main__":
    sys.exit(main())
