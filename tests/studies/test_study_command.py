# SPDX-License-Identifier: Apache-2.0
"""The command with real processes: two of it at once, workers and commands killed in the middle, failures, signals."""

import csv
import os
import signal
import subprocess
import sys
import time
from collections import Counter
from pathlib import Path

import pytest

from lightning_stable.cli import main as cli
from lightning_stable.studies.study_command import main
from tests.studies.engine import toy_study

STUDIES = {
    "toy": toy_study.PATH,
    "unequal": f"{toy_study.__name__}:UnequalStudy",
    "fitting": f"{toy_study.__name__}:FittingStudy",
    "needy": f"{toy_study.__name__}:NeedyStudy",
}
ROOT = Path(__file__).parents[2]
RUNS = 36
_START = f"""
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's job in the background is born deaf to it
from lightning_stable.studies.engine import trial_store
trial_store.BEAT_SECONDS, trial_store.PATIENCE_SECONDS = 0.1, 2.0
from lightning_stable.studies.study_command import main
sys.exit(main(sys.argv[1:], {STUDIES!r}))
"""


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.setenv(toy_study.FOLDER, str(tmp_path))
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def begin():
    """Begin the command in a process of its own, with the tests' folder as its own and all it says in a pipe."""
    begun = []

    def begin_one(*arguments):
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
        command = [sys.executable, "-c", _START, "toy", "--out", "out", *arguments]
        begun.append(
            subprocess.Popen(
                command, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
                start_new_session=True,
            )
        )  # fmt: skip
        return begun[-1]

    yield begin_one
    for process in begun:
        if process.poll() is None:
            process.kill()
            process.communicate()


def wait_until(condition, seconds=90.0):
    end = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def lines(path):
    return path.read_text().splitlines() if path.exists() else []


def begun_runs(folder):
    return [(int(pid), key) for pid, key in (line.split(" ", 1) for line in lines(folder / "begun"))]


def results(folder):
    with (folder / "out" / "results.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def assert_each_run_is_complete_once(folder):
    assert Counter(lines(folder / "made")).total() == len(set(lines(folder / "made"))) == RUNS
    rows = results(folder)
    assert len(rows) == RUNS
    assert all(row["loss"] and not row["failed_with"] for row in rows)


def test_a_study_is_made_and_reported(folder, capsys):
    assert main(["toy", "--workers", "2"], STUDIES) == 0
    out = folder / "runs" / "study_toy"
    assert {path.name for path in out.iterdir()} >= {"table.md", "results.csv", "figure.png", "trials.db"}
    said = capsys.readouterr().out
    assert (out / "table.md").read_text() in said
    assert "Means: narrow 0.125, wide 0.03125" in said
    assert f"Picture: {Path('runs', 'study_toy', 'figure.png')}" in said
    assert Counter(lines(folder / "made")).total() == RUNS
    assert len({pid for pid, _ in begun_runs(folder)}) <= 2, "workers are kept"

    (out / "table.md").unlink()
    assert main(["toy", "--workers", "1"], STUDIES) == 0
    assert (out / "table.md").read_text() in said
    assert Counter(lines(folder / "made")).total() == RUNS, "nothing was made twice"
    assert "36 of 36 runs were made before" in capsys.readouterr().out


def test_a_quick_study_has_a_place_of_its_own(folder, capsys):
    assert main(["toy", "--quick", "--workers", "1", "--seeds", "4"], STUDIES) == 0
    table = (folder / "runs" / "study_toy_quick" / "table.md").read_text()
    assert "x 1 seed (4) = 3 runs in each setting (1); 6 runs in all" in table
    assert "Made by `lightning-stable study toy --quick --seeds 4`." in table


def test_two_commands_at_once_make_each_run_once(folder, begin):
    both = [begin("--workers", "2"), begin("--workers", "2")]
    said = [process.communicate(timeout=120) for process in both]
    assert [process.returncode for process in both] == [0, 0], said
    assert_each_run_is_complete_once(folder)
    assert len(begun_runs(folder)) == RUNS


def test_a_worker_that_is_killed_is_replaced_and_its_run_made_again(folder, begin):
    (folder / "hold").touch()
    command = begin("--workers", "2")
    wait_until(lambda: len(lines(folder / "begun")) == 2)
    killed, key = begun_runs(folder)[0]
    os.kill(killed, signal.SIGKILL)
    wait_until(lambda: len(lines(folder / "begun")) == 3)
    (folder / "hold").unlink()
    assert command.communicate(timeout=120)
    assert command.returncode == 0
    assert_each_run_is_complete_once(folder)
    assert Counter(key for _, key in begun_runs(folder)) == {**dict.fromkeys(lines(folder / "made"), 1), key: 2}


def test_a_run_that_is_terminated_in_a_fit_is_made_again(folder, capsys):
    """Lightning raises where SIGTERM would have ended the process."""
    (folder / "terminate").touch()
    assert main(["fitting", "--out", "out", "--workers", "1", "--seeds", "0"], STUDIES) == 0, capsys.readouterr()
    assert not (folder / "terminate").exists()
    assert len({pid for pid, _ in begun_runs(folder)}) == 1, "by another worker"
    assert [row["failed_with"] for row in results(folder)] == ["", ""]


def test_a_command_that_is_killed_leaves_no_worker_and_its_runs_are_taken_up_by_the_next(folder, begin):
    (folder / "hold").touch()
    command = begin("--workers", "2")
    wait_until(lambda: len(lines(folder / "begun")) == 2)
    command.kill()
    command.communicate()
    workers = [pid for pid, _ in begun_runs(folder)]
    wait_until(lambda: not any(_is_alive(pid) for pid in workers))
    (folder / "hold").unlink()
    following = begin("--workers", "2")
    said = following.communicate(timeout=120)
    assert following.returncode == 0, said
    assert_each_run_is_complete_once(folder)
    assert len(begun_runs(folder)) == RUNS + 2


def _is_alive(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return "State:\tZ" not in Path(f"/proc/{pid}/status").read_text() if Path("/proc").exists() else True


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, -signal.SIGINT)])
def test_a_command_that_is_told_to_end_gives_back_its_runs_at_once(folder, begin, number, status):
    """Ctrl-C in a terminal reaches the workers, too; `lightning-stable` makes exit status 130 of it."""
    (folder / "hold").touch()
    command = begin("--workers", "2")
    wait_until(lambda: len(lines(folder / "begun")) == 2)
    os.killpg(command.pid, number) if number == signal.SIGINT else command.send_signal(number)
    _, said = command.communicate(timeout=60)
    assert command.returncode == status, said
    assert "0 of 36 runs are done; the same command goes on" in said
    assert not (folder / "out" / "table.md").exists()
    (folder / "hold").unlink()
    assert main(["toy", "--out", "out", "--workers", "1"], STUDIES) == 0
    assert_each_run_is_complete_once(folder)


def test_runs_that_fail_are_in_the_table_and_the_exit_status_and_can_be_retried(folder, capsys):
    (folder / "fail").touch()
    arguments = ["toy", "--out", "out", "--workers", "2"]
    assert main(arguments, STUDIES) == 1
    captured = capsys.readouterr()
    assert "**Failed: 12 runs**" in captured.out
    assert "RuntimeError: told to fail" in captured.out
    assert "12 runs failed; what they said is in" in captured.err
    assert "Traceback" in (folder / "out" / "workers.log").read_text()

    (folder / "fail").unlink()
    assert main(arguments, STUDIES) == 1, "not before it is asked for"
    assert len(lines(folder / "made")) == 24
    assert main([*arguments, "--retry-failed"], STUDIES) == 0
    assert_each_run_is_complete_once(folder)
    assert "Failed" not in (folder / "out" / "table.md").read_text()


def test_a_run_that_kills_its_workers_is_a_failure(folder, capsys):
    (folder / "die").touch()
    assert main(["toy", "--out", "out", "--workers", "2", "--quick", "--seeds", "0"], STUDIES) == 1
    assert "narrow noise=0.0 x=1.0 seed=0: the worker ended by signal 9, 3 times" in capsys.readouterr().out
    assert len(lines(folder / "made")) == 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["unequal"], r"The study toy gives its sides unequal tuning"),
        (["toy", "--out", "begin.txt"], "`--out` must be a folder, or a new one: begin.txt is a file"),
        (["toy", "--out", "begin.txt/out"], "`--out` must be a folder, or a new one"),
        (["toy", "--storage", "cobol://host/runs"], "`--storage` must be the URL of a database"),
    ],
)
def test_what_is_refused_is_refused_before_anything_runs(folder, arguments, message, capsys):
    (folder / "begin.txt").touch()
    assert main([*arguments, "--workers", "1"], STUDIES) == 2
    assert message in capsys.readouterr().err
    assert not (folder / "begun").exists()


def test_a_table_of_other_arguments_is_not_replaced_and_one_of_fewer_seeds_is(folder, capsys):
    assert main(["toy", "--out", "out", "--workers", "1", "--quick", "--seeds", "0"], STUDIES) == 0
    table = (folder / "out" / "table.md").read_text()
    assert main(["toy", "--out", "out", "--workers", "1", "--seeds", "0"], STUDIES) == 2
    assert "is of `lightning-stable study toy --quick --seeds 0`. Choose another `--out`" in capsys.readouterr().err
    assert (folder / "out" / "table.md").read_text() == table
    assert main(["toy", "--out", "out", "--workers", "1", "--quick", "--seeds", "0,1"], STUDIES) == 0
    assert "x 2 seeds (0, 1)" in (folder / "out" / "table.md").read_text()


def test_a_folder_that_is_full_in_the_end_is_named(folder, capsys, monkeypatch):
    from lightning_stable.studies import study_command

    def full(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(study_command, "write_results", full)
    assert main(["toy", "--out", "out", "--workers", "1", "--quick", "--seeds", "0"], STUDIES) == 2
    said = capsys.readouterr().err
    assert "cannot write to out: No space left on device" in said
    assert "choose another `--out`" in said


def test_a_storage_that_goes_away_is_said_and_a_bug_is_not_hidden(folder, capsys, monkeypatch):
    from optuna.exceptions import StorageInternalError

    from lightning_stable.studies import study_command

    class Broken:
        def __init__(self, *_):
            self.error = StorageInternalError("gone")

        def __call__(self):
            raise self.error

    monkeypatch.setattr(study_command, "RunAll", Broken)
    with pytest.raises(SystemExit) as stop:
        main(["toy", "--workers", "1"], STUDIES)
    assert stop.value.code == 1
    assert "The same command goes on." in capsys.readouterr().err
    monkeypatch.setattr(study_command, "RunAll", lambda *_: ValueError)  # what no user has done
    monkeypatch.setattr(study_command, "_report", lambda *_: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        main(["toy", "--workers", "1"], STUDIES)


@pytest.mark.parametrize(
    "arguments",
    [[], ["dance"], ["toy", "--workers", "0"], ["toy", "--workers", "two"], ["toy", "--seeds", "0,0"],
     ["toy", "--seeds", "-1"], ["toy", "--seeds", ""]],
)  # fmt: skip
def test_a_wrong_command_line_is_exit_status_2(arguments):
    with pytest.raises(SystemExit) as stop:
        main(arguments, STUDIES)
    assert stop.value.code == 2


def test_modules_that_runs_need_are_looked_for_before_anything_runs(folder):
    with pytest.raises(ModuleNotFoundError) as missing:
        main(["needy", "--workers", "1"], STUDIES)
    assert missing.value.name == "no_such_module"
    assert not (folder / "runs").exists()


# As `lightning-stable study`


def test_studies_are_listed_with_their_questions_without_torch():
    code = (
        "import sys; sys.modules['torch'] = sys.modules['lightning'] = None; from lightning_stable.cli import main;"
        "sys.exit(main(['study', '--help']))"
    )
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert "\n  budget " in done.stdout
    assert "Which learning-rate schedule is best when a run may take only so many steps?" in done.stdout


def test_it_says_that_several_machines_need_a_database_server(capsys):
    with pytest.raises(SystemExit):
        main(["--help"], STUDIES)
    said = " ".join(capsys.readouterr().out.split())
    assert "Several machines that run the same command need a database server" in said
    assert "An SQLite file, as the default is, is for the processes of one machine" in said


def test_a_study_says_which_extra_it_needs(monkeypatch, capsys, folder):
    monkeypatch.setitem(sys.modules, "optuna", None)
    assert cli(["study", "budget", "--quick"]) == 2
    assert capsys.readouterr().err == ("lightning-stable: this needs optuna: pip install 'lightning-stable[studies]'\n")
    assert not list(folder.iterdir())
