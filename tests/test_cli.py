# SPDX-License-Identifier: Apache-2.0
"""The command line as a user meets it; `main` is called in process but where a terminal or a traceback is the point."""

import errno
import json
import os
import subprocess
import sys

import pytest
import torch
import yaml

from lightning_stable import __version__
from lightning_stable.cli import main
from lightning_stable.studies.recipes import find_recipe, list_recipes
from lightning_stable.studies.run_log import read_run
from tests.small_fit import LIGHTNING_CLI_WARNS, SMALLER, small_fit

pytestmark = pytest.mark.filterwarnings(LIGHTNING_CLI_WARNS)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """`seed_everything` leaves variables behind; and nothing may be written but to `tmp_path`."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.chdir(tmp_path)


def config_of(folder):
    return yaml.safe_load((folder / "run" / "version_0" / "config.yaml").read_text())


# Everything but fit


def test_list_shows_every_recipe_with_what_it_takes(capsys):
    assert main(["list"]) == 0
    lines = capsys.readouterr().out.splitlines()
    for recipe in list_recipes():
        line = next(line for line in lines if line.split(" ")[0] == recipe.name)
        assert line.endswith(f"{recipe.shows} (needs {recipe.needs}; {recipe.takes})")
    assert lines[-2] == "Start one: lightning-stable fit --recipe NAME"
    assert "--recipe PART, where PART is one of optimizers/adahessian, " in lines[-1]


def test_show_prints_the_yaml_as_it_is(capsys):
    assert main(["show", "charlm_stable"]) == 0
    assert capsys.readouterr().out == find_recipe("charlm_stable").path.read_text()


def test_version(capsys):
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lightning-stable {__version__}\n"


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"], ["help"]])
def test_help_names_every_command(arguments, capsys):
    assert main(arguments) == 0
    out = capsys.readouterr().out
    for command in ("list", "show", "fit", "validate", "report", "detect", "techniques", "study", "bench"):
        assert f"\n  {command} " in out
    assert max(map(len, out.splitlines())) <= 120


@pytest.mark.parametrize(
    "command", ["list", "show", "fit", "validate", "report", "detect", "techniques", "study", "bench"]
)
def test_every_command_has_help(command, capsys):
    assert main([command, "--help"]) == 0
    assert capsys.readouterr().out.startswith(
        f"usage: lightning-stable {'[options] ' * (command in ('fit', 'validate'))}"
    )


@pytest.mark.parametrize("measurement", ["overhead", "optimizers"])
def test_every_measurement_is_listed_and_has_help(measurement, capsys):
    assert main(["bench", "--help"]) == 0
    assert f"\n  {measurement} " in capsys.readouterr().out
    assert main(["bench", measurement, "--help"]) == 0
    assert capsys.readouterr().out.startswith(f"usage: lightning-stable bench {measurement} ")


def test_a_measurement_is_made_and_what_it_refuses_is_exit_status_2(capsys):
    assert main(["bench", "optimizers", "--sizes", "0.01M", "--rounds", "1", "--threads", "1"]) == 0
    assert "\n  AdamW fused " in capsys.readouterr().out
    assert main(["bench", "optimizers", "--rounds", "0"]) == 2
    assert "must be a whole number, at least 1, got 0" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["dance"], "there is no command 'dance'; the commands are list, show, fit,"),
        (["list", "all"], "`list` takes no arguments, got all"),
        (["show"], "`show` takes the name of one recipe; they are charlm_adamw,"),
        (["show", "charlm_adam"], "there is no recipe 'charlm_adam'; did you mean charlm_adamw"),
        (["fit", "--recipe", "charlm_stabel"], "there is no recipe 'charlm_stabel'; did you mean charlm_stable"),
        (["fit", "--recipe=zzz"], "there is no recipe 'zzz'; the recipes are charlm_adamw,"),
        (["fit", "--recipe"], "there is no recipe ''"),
        (["fit"], "`fit` needs `--recipe NAME` (`lightning-stable list` has the names) or `--config FILE`"),
        (["bench"], "`bench` takes the name of a measurement: overhead, guard, optimizers, detectors"),
        (["bench", "speed"], "`bench` takes the name of a measurement: overhead, guard, optimizers, detectors"),
    ],
)
def test_a_wrong_command_line_is_exit_status_2_and_one_line(arguments, message, capsys):
    assert main(arguments) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"lightning-stable: {message}")
    assert captured.err.count("\n") == 1


def test_list_show_and_report_start_without_torch(tmp_path):
    code = (
        "import sys; sys.modules['torch'] = sys.modules['lightning'] = None; from lightning_stable.cli import main;"
        "sys.exit(main(['list']) + main(['show', 'charlm_stable']) + (main(['report', 'no/such/run']) != 2))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, stdout=subprocess.DEVNULL)


def test_a_pipe_that_closes_early_is_no_error():
    command = f"{sys.executable} -m lightning_stable.cli show charlm_stable | head -n 1"
    done = subprocess.run(["bash", "-o", "pipefail", "-c", command], capture_output=True, text=True)
    assert done.stdout.startswith("# shows:")
    assert done.stderr == ""


def test_a_missing_extra_is_named_with_the_remedy(capsys, monkeypatch):
    from lightning_stable import cli

    def needs_sklearn(_):
        raise ModuleNotFoundError("No module named 'sklearn'", name="sklearn.datasets")

    monkeypatch.setitem(cli._COMMANDS, "fit", needs_sklearn)
    assert main(["fit"]) == 2
    assert capsys.readouterr().err == (
        "lightning-stable: this needs sklearn.datasets: pip install 'lightning-stable[recipes]'\n"
    )


def test_a_module_of_ours_that_is_missing_is_a_bug_and_not_an_extra(monkeypatch):
    from lightning_stable import cli

    def broken(_):
        raise ModuleNotFoundError("No module named 'torhc'", name="torhc")

    monkeypatch.setitem(cli._COMMANDS, "fit", broken)
    with pytest.raises(ModuleNotFoundError, match="torhc"):
        main(["fit"])


def test_an_interrupt_is_exit_status_130(monkeypatch, capsys):
    from lightning_stable import cli

    def interrupted(_):
        raise KeyboardInterrupt

    monkeypatch.setitem(cli._COMMANDS, "list", interrupted)
    assert main(["list"]) == 130
    assert capsys.readouterr().err == "\nlightning-stable: interrupted\n"


# fit and validate


def test_fit_runs_a_recipe_with_overrides_and_says_where_to_look(tmp_path, capsys):
    assert small_fit(tmp_path) == 0
    folder = tmp_path / "run" / "version_0"
    assert read_run(folder).steps_tried == 3
    assert config_of(tmp_path)["model"]["init_args"]["d_model"] == 16
    out = capsys.readouterr().out
    assert f"Look at it:  tensorboard --logdir {tmp_path}\n" in out
    assert f"Report:      lightning-stable report {folder}\n" in out


def test_a_guarded_fit_ends_with_the_guards_table_and_the_report(tmp_path, capsys):
    assert small_fit(tmp_path, "--lr_scheduler.warmup_steps=1", recipe="charlm_stable") == 0
    out = capsys.readouterr().out
    assert "SpikeGuard" in out
    assert "lightning-stable report " in out
    assert "Look at it:" not in out


def test_overrides_win_on_either_side_of_the_recipe(tmp_path):
    assert main(["fit", "--model.lr=0.5", *SMALLER, "--trainer.max_steps=2", "--trainer.logger.save_dir", str(tmp_path),
                 "--trainer.logger.name=run", "--recipe", "charlm_adamw", "--seed_everything=7"]) == 0  # fmt: skip
    config = config_of(tmp_path)
    assert (config["model"]["init_args"]["lr"], config["seed_everything"], config["trainer"]["max_steps"]) == (
        0.5,
        7,
        2,
    )


def test_fit_takes_a_yaml_of_ones_own_and_classes_by_their_short_names(tmp_path):
    config = {
        "seed_everything": 0,
        "model": {"class_path": "CharLM", "init_args": {"n_layer": 1, "n_head": 2, "d_model": 16, "context": 8}},
        "data": {"class_path": "PythonTextDataModule", "init_args": {"context": 8, "batch_size": 2}},
        "trainer": {
            "accelerator": "cpu",
            "max_steps": 3,
            "limit_val_batches": 0,
            "enable_progress_bar": False,
            "enable_checkpointing": False,
            "logger": {"class_path": "CSVLogger", "init_args": {"save_dir": str(tmp_path), "name": "run"}},
            "callbacks": [{"class_path": "SpikeGuard"}, {"class_path": "GradientNormMonitor"}],
            "log_every_n_steps": 1,
        },
        "lr_scheduler": {"class_path": "ProfileLR"},
    }
    (tmp_path / "my.yaml").write_text(yaml.safe_dump(config))
    assert main(["fit", "--config", str(tmp_path / "my.yaml")]) == 0
    rates = [rate for _, rate in read_run(tmp_path / "run" / "version_0").learning_rate]
    assert len(set(rates)) == 3


def test_a_schedule_given_on_the_command_line_changes_the_rate_in_every_step(tmp_path):
    assert small_fit(tmp_path, "--lr_scheduler=ProfileLR", steps=4) == 0
    log = read_run(tmp_path / "run" / "version_0")
    rates = [rate for _, rate in log.scalars["stability/lr"]]
    assert len(rates) == 4
    assert rates == sorted(set(rates), reverse=True)
    assert rates[0] == pytest.approx(3e-3)


def test_a_profile_is_named_on_the_command_line(tmp_path):
    schedule = ["--lr_scheduler=ProfileLR", "--lr_scheduler.profile=WSD", "--lr_scheduler.profile.decay_fraction=0.5"]
    assert small_fit(tmp_path, *schedule, "--lr_scheduler.profile.decay=linear", steps=4) == 0
    rates = [rate for _, rate in read_run(tmp_path / "run" / "version_0").scalars["stability/lr"]]
    assert rates == pytest.approx([3e-3, 3e-3, 3e-3, 1.5e-3])


def test_a_callback_is_added_by_its_short_name(tmp_path):
    assert small_fit(tmp_path, "--trainer.callbacks+=SpikeGuard", "--trainer.callbacks.snapshot_every=2") == 0
    callbacks = config_of(tmp_path)["trainer"]["callbacks"]
    assert callbacks[-1]["class_path"].endswith("SpikeGuard")
    assert callbacks[-1]["init_args"]["snapshot_every"] == 2
    assert len(callbacks) == 4


@pytest.mark.filterwarnings("ignore:The dirpath has changed")  # Lightning's, wherever a run has a new version
def test_what_was_trained_can_be_validated(tmp_path, capsys):
    saves = "--trainer.callbacks.every_n_train_steps=2"
    assert small_fit(tmp_path, saves) == 0
    checkpoint = tmp_path / "run" / "version_0" / "checkpoints" / "last.ckpt"
    logs = f"--trainer.logger.save_dir={tmp_path}"
    capsys.readouterr()
    assert main(["validate", "--recipe", "charlm_adamw", *SMALLER, logs, saves, "--ckpt_path", str(checkpoint)]) == 0
    out = capsys.readouterr().out
    assert "val_loss" in out
    assert "Report:" not in out


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--data.corrupt+={kind: gremlins, batches: [1]}"], "`Corruption(kind=...)` must be one of 'random_bytes', "),
        (
            ["--trainer.callbacks+=SpikeGuard", "--trainer.callbacks.watch",
             "{loss: {class_path: MedianDeviation, init_args: {window: -3}}}"],
            "`MedianDeviation(window=...)` must be at least 2, got -3.",
        ),
        (["--trainer.callbacks+=SpikeGuard", "--trainer.callbacks.ladder=[]"], "`SpikeGuard(ladder=...)` must "),
        (
            ["--trainer.callbacks+=SpikeGuard", "--trainer.callbacks.snapshot_every=0"],
            "`SpikeGuard(snapshot_every=...)` must be at least 1, got 0.",
        ),
        (["--data.batches_per_epoch=-1"], "`PythonTextDataModule(batches_per_epoch=...)` must be at least 1, got -1."),
        (["--lr_scheduler=ProfileLR", "--lr_scheduler.warmup_steps=-5"], "`ProfileLR(warmup_steps=...)` must be a num"),
        (["--lr_scheduler=ProfileLR", "--lr_scheduler.profile=Cosin"], "`ProfileLR(profile=...)` must be one of Cos"),
        (["--model.n_layer=two"], "--model.n_layer must be int, got 'two'."),
        (["--trainer.callbacks+=SpikeGuardd"], "--trainer.callbacks: there is no class 'SpikeGuardd'; "),
        (["--trainer.max_stepz=3"], "unrecognized arguments: --trainer.max_stepz=3"),
        (["--config=nosuch.yaml"], "--config: File does not exist: "),
        (["--ckpt_path=no.ckpt"], "--ckpt_path no.ckpt: no such checkpoint."),
    ],
)  # fmt: skip
def test_what_a_class_refuses_is_one_line_and_exit_status_2(arguments, message, tmp_path, capsys):
    assert small_fit(tmp_path, *arguments) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if line.startswith("lightning-stable")]
    assert len(said) == 1
    assert said[0].partition(": ")[2].startswith(message)


def test_an_error_names_the_command_whose_help_lists_the_options(tmp_path, capsys):
    assert small_fit(tmp_path, "--model.n_layer=two") == 2
    assert capsys.readouterr().err.endswith(
        "lightning-stable fit: --model.n_layer must be int, got 'two'.\nAll options: lightning-stable fit --help\n"
    )


def test_a_refusal_comes_without_a_traceback_or_a_listing_of_options(tmp_path):
    command = [sys.executable, "-m", "lightning_stable.cli", "fit", "--recipe", "charlm_stable", *SMALLER]
    done = subprocess.run([*command, "--model.n_layer=0"], capture_output=True, text=True, cwd=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.splitlines() == [
        "Seed set to 0",
        "lightning-stable: `GPT(n_layer=...)` must be at least 1, got 0.",
    ]


def test_a_halted_run_is_exit_status_1_with_the_report_and_no_traceback(tmp_path, capsys):
    arguments = [
        "--trainer.callbacks+=SpikeGuard",
        "--trainer.callbacks.ladder=[{class_path: lightning_stable.guard.Halt}]",
        "--data.corrupt=[{kind: nan_embedding, batches: [2]}]",
    ]
    assert small_fit(tmp_path, *arguments, steps=5) == 1
    captured = capsys.readouterr()
    assert "SpikeGuard halted the run after 1 incident" in captured.err
    assert "step 2: " in captured.err
    assert "What to try: " in captured.err
    assert "Traceback" not in captured.err
    incidents = (tmp_path / "run" / "version_0" / "incidents.jsonl").read_text().splitlines()
    assert [json.loads(line)["response"] for line in incidents] == ["Halt"]


@pytest.mark.parametrize("number", [errno.EROFS, errno.EACCES, errno.ENOSPC], ids=errno.errorcode.get)
def test_a_folder_that_takes_no_logs_is_exit_status_1_with_the_folder_and_the_remedy(
    number, tmp_path, capsys, monkeypatch
):
    def refuse(path, *args, **kwargs):
        raise OSError(number, os.strerror(number), str(path))

    monkeypatch.setattr(os, "makedirs", refuse)
    assert small_fit(tmp_path) == 1
    err = capsys.readouterr().err
    assert f"could not write: {os.strerror(number)}: {tmp_path}" in err
    assert "`--trainer.logger.init_args.save_dir`" in err


def test_an_error_of_the_system_that_is_not_about_writing_stays_what_it_is(tmp_path, monkeypatch):
    def refuse(*args, **kwargs):
        raise OSError(errno.EIO, "Input/output error")

    monkeypatch.setattr(os, "makedirs", refuse)
    with pytest.raises(OSError, match="Input/output error"):
        small_fit(tmp_path)


def test_a_fit_on_a_terminal_says_nothing_that_is_of_no_use(tmp_path):
    command = [sys.executable, "-m", "lightning_stable.cli", "fit", "--recipe", "charlm_stable", *SMALLER]
    done = subprocess.run(
        [*command, "--trainer.max_steps=3", "--lr_scheduler.warmup_steps=1"],
        capture_output=True,
        text=True,
        cwd=tmp_path,
    )
    assert done.returncode == 0
    said = done.stdout + done.stderr
    for noise in ("FLOPs", "eval mode", "litlogger", "LeafSpec", "many workers", "srun", "TPU", "Traceback"):
        assert noise not in said
    assert "CharLM: " in done.stderr
    assert (tmp_path / "runs" / "charlm_stable" / "version_0" / "config.yaml").is_file()


# report, after a real run


def test_a_run_is_reported_and_compared(tmp_path, capsys):
    bad = "--data.corrupt=[{kind: nan_embedding, batches: [2]}]"
    assert small_fit(tmp_path / "a", bad, "--lr_scheduler.warmup_steps=1", recipe="charlm_stable", steps=5) == 0
    assert small_fit(tmp_path / "b", bad, steps=5) == 0
    one, other = (tmp_path / name / "run" / "version_0" for name in "ab")
    capsys.readouterr()
    assert main(["report", str(one), "--compare", str(other), "--out", str(tmp_path / "x.png")]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert (tmp_path / "x.png").is_file()
    assert "Survived 1 incident (1 x SkipStep) in 5 optimizer steps (6 tried)" in out
    assert main(["report", str(other)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    assert "No incidents in 5 steps; the loss is not finite from step 2;" in out


def test_report_on_a_folder_that_is_no_run_is_exit_status_2(tmp_path, capsys):
    assert main(["report", str(tmp_path)]) == 2
    assert "no TensorBoard event files" in capsys.readouterr().err
    assert main(["report"]) == 2
    assert "the following arguments are required: RUN_DIR" in capsys.readouterr().err


def test_the_parser_leaves_the_random_numbers_of_other_commands_alone(tmp_path):
    torch.manual_seed(3)
    before = torch.get_rng_state()
    assert main(["list"]) == 0
    assert main(["report", str(tmp_path)]) == 2
    assert torch.equal(torch.get_rng_state(), before)
