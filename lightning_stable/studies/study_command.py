# SPDX-License-Identifier: Apache-2.0
"""Many runs, one question, one table, one picture. What was broken off goes on with the same command."""

import argparse
import importlib.util
import os
import shlex
import signal
import sys
from collections.abc import Sequence
from pathlib import Path
from types import FrameType
from typing import NoReturn

from lightning_stable.studies.engine.crew import Crew
from lightning_stable.studies.engine.equal_tuning import UnequalTuning, require_equal_tuning
from lightning_stable.studies.engine.out_folder import OutRefused, make_folder, require_own
from lightning_stable.studies.engine.outcome import Outcome
from lightning_stable.studies.engine.report import FIGURE, RESULTS, TABLE, draw_figure, write_results, write_table
from lightning_stable.studies.engine.run_all import RunAll
from lightning_stable.studies.engine.run_progress import RunProgress
from lightning_stable.studies.engine.study import Study, Trial
from lightning_stable.studies.engine.trial_store import StorageRefused, TrialStore, sqlite_url
from lightning_stable.studies.engine.worker import load_study
from lightning_stable.studies.pictures import try_to_draw

STUDIES = {
    "budget": "lightning_stable.studies.budget.study:BudgetStudy",
    "survival": "lightning_stable.studies.survival.study:SurvivalStudy",
}
"""From names to `module:Class`; those modules are light."""
_PROGRAM = "lightning-stable study"
_TRIALS, _LOG = "trials.db", "workers.log"


def main(argv: Sequence[str] | None = None, studies: dict[str, str] = STUDIES) -> int:
    """Make a study's runs, then its table, and return the exit status: 0 done, 1 some runs failed, 2 refused.

    Args:
        argv: What follows `lightning-stable study`; None takes those of the process.
        studies: From names to `module:Class`.

    Example:
        >>> main(["budget", "--workers", "0"])
        Traceback (most recent call last):
            ...
        SystemExit: 2
    """
    arguments = _parser(studies).parse_args(argv)
    path = studies[arguments.study]
    study = load_study(path)
    _require_modules("optuna", *study.needs)
    try:
        seeds = _seeds_of(study, arguments)
        trials = study.trials(seeds, arguments.quick)
        require_equal_tuning(study.name, trials)
        folder = _make_folder(study, seeds, arguments)
        outcome = _outcome(study, trials, path, folder, arguments)
    except (StorageRefused, UnequalTuning, OutRefused) as error:
        print(f"{_PROGRAM}: {error}", file=sys.stderr)
        return 2
    return _report(study, outcome, folder, _command(arguments))


def _seeds_of(study: Study, arguments: argparse.Namespace) -> tuple[int, ...]:
    return arguments.seeds or (study.quick_seeds if arguments.quick else study.seeds)


def _make_folder(study: Study, seeds: Sequence[int], arguments: argparse.Namespace) -> Path:
    folder = arguments.out or Path("runs", f"study_{study.name}{'_quick' if arguments.quick else ''}")
    make_folder(folder)
    require_own(folder, study, arguments.quick, seeds)
    return folder


def _outcome(study: Study, trials: list[Trial], path: str, folder: Path, arguments: argparse.Namespace) -> Outcome:
    name = f"{study.name}{'_quick' if arguments.quick else ''} v{study.version}"
    threads = max(1, _cores() // arguments.workers)
    with Crew(path, arguments.workers, threads, folder / _LOG) as crew:
        store = TrialStore(arguments.storage or sqlite_url(folder / _TRIALS), name)
        _run(study, trials, store, crew, arguments)
    return Outcome([result for trial in trials if (result := store.result(trial))], study.objective)


def _run(study: Study, trials: list[Trial], store: TrialStore, crew: Crew, arguments: argparse.Namespace) -> None:
    from optuna.exceptions import StorageInternalError

    before = _count_done(trials, store)
    if before:
        print(f"{before} of {len(trials)} runs were made before", flush=True)
    progress = RunProgress(f"study {study.name}", [study.cost(trial) for trial in trials], sys.stderr)
    kept = signal.signal(signal.SIGTERM, _terminate)
    try:
        RunAll(study, trials, store, crew, progress, arguments.retry_failed)()
    except (KeyboardInterrupt, SystemExit):
        print(
            f"\n{_count_done(trials, store)} of {len(trials)} runs are done; the same command goes on", file=sys.stderr
        )
        raise
    except StorageInternalError as error:
        print(f"{_PROGRAM}: the storage is gone: {error.__cause__}\nThe same command goes on.", file=sys.stderr)
        raise SystemExit(1) from error
    finally:
        signal.signal(signal.SIGTERM, kept)


def _report(study: Study, outcome: Outcome, folder: Path, command: str) -> int:
    try:
        write_results(outcome, folder)
        print(write_table(study, outcome, command, folder))
    except OSError as error:
        print(
            f"{_PROGRAM}: cannot write to {folder}: {error.strerror}. Make room there, or choose another `--out`; with"
            " the same storage no run is made again.",
            file=sys.stderr,
        )
        return 2
    print(f"Table: {folder / TABLE}\nRuns: {folder / RESULTS}")
    drawn = try_to_draw(_PROGRAM, folder / FIGURE, lambda: draw_figure(study, outcome, folder))
    if outcome.failed:
        print(f"{_PROGRAM}: {len(outcome.failed)} runs failed; what they said is in {folder / _LOG}", file=sys.stderr)
        return 1
    return drawn


def _count_done(trials: Sequence[Trial], store: TrialStore) -> int:
    return sum(store.status(trial) in ("complete", "failed") for trial in trials)


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _require_modules(*names: str) -> None:
    for name in names:
        if importlib.util.find_spec(name) is None:
            raise ModuleNotFoundError(f"No module named {name!r}", name=name)


def _command(arguments: argparse.Namespace) -> str:
    """The command line that comes to the same table, wherever and by however many workers it is made."""
    words = [_PROGRAM, arguments.study, *["--quick"] * arguments.quick]
    if arguments.seeds:
        words += ["--seeds", ",".join(map(str, arguments.seeds))]
    return " ".join([words[0], shlex.join(words[1:])])


def _parser(studies: dict[str, str]) -> argparse.ArgumentParser:
    width = max(map(len, studies))
    questions = "\n".join(f"  {name:<{width}}  {load_study(path).question}" for name, path in studies.items())
    parser = argparse.ArgumentParser(
        prog=_PROGRAM,
        description=f"{__doc__}\n\nstudies:\n{questions}",
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("study", metavar="NAME", choices=studies, help="the study")
    parser.add_argument("--quick", action="store_true", help="a smoke version: fewer and shorter runs")
    parser.add_argument(
        "--workers", type=_at_least_one, default=_cores(), metavar="N", help="processes (default: cores, %(default)s)"
    )
    parser.add_argument(
        "--storage", metavar="URL", help="database of the runs (default: trials.db in --out). Several machines that run"
        " the same command need a database server: postgresql+psycopg2://..., mysql+pymysql://..., if their drivers are"
        " there. An SQLite file, as the default is, is for the processes of one machine: on a network share it may be"
        " corrupted",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, metavar="DIR", help="where tables go (default: runs/study_NAME)")
    parser.add_argument("--seeds", type=_seeds, metavar="0,1,2", help="the seeds (default: the study's own)")
    parser.add_argument("--retry-failed", action="store_true", help="make runs that have failed once more")
    return parser


def _at_least_one(text: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"must be a whole number, at least 1, got {text}")
    return int(text)


def _seeds(text: str) -> tuple[int, ...]:
    parts = text.split(",")
    if not all(part.strip().isdecimal() for part in parts) or len(set(map(int, parts))) < len(parts):
        raise argparse.ArgumentTypeError(f"must be different whole numbers from 0, such as 0,1,2; got {text}")
    return tuple(map(int, parts))


def _cores() -> int:
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
