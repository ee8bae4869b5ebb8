# SPDX-License-Identifier: Apache-2.0
"""Files that somebody else may have written: no code in them runs, and what is wrong is said in one line."""

import json
import os
import pickle
import re
import sys
from types import SimpleNamespace

import pytest
import torch
import yaml
from lightning.fabric.plugins.io import torch_io
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_stable.cli import main
from lightning_stable.detectors import MedianDeviation
from lightning_stable.guard import Halt, SavedStep, SkipStep, SpikeGuard
from tests.faulty_runs import Net, make_batches, run
from tests.guard.test_spike_guard import guard
from tests.small_fit import LIGHTNING_CLI_WARNS, small_fit
from tests.studies.logged_runs import falling, incident, write_csv

pytestmark = [
    pytest.mark.filterwarnings(LIGHTNING_CLI_WARNS),
    pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*"),
]

GUARD = "--trainer.callbacks+=SpikeGuard"


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """`seed_everything` leaves variables behind; and nothing may be written but to `tmp_path`."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.delenv("TORCH_FORCE_NO_WEIGHTS_ONLY_LOAD", raising=False)
    monkeypatch.chdir(tmp_path)


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, folder):
        self.folder = folder

    def __reduce__(self):
        return os.mkdir, (str(self.folder),)


@pytest.fixture
def made(tmp_path):
    """The folder that must not be there in the end."""
    yield tmp_path / "made"
    assert not (tmp_path / "made").exists()


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """Of a small run by the command line, with a guard."""
    folder = tmp_path_factory.mktemp("run")
    assert small_fit(folder, GUARD) == 0
    return folder / "run" / "version_0" / "checkpoints" / "last.ckpt"


def changed(checkpoint, path, change):
    content = torch.load(checkpoint, weights_only=True)
    change(content)
    torch.save(content, path)
    return path


def refused(capsys, folder, path):
    """What the command line says about it, in one line."""
    capsys.readouterr()
    assert small_fit(folder, GUARD, "--ckpt_path", str(path), steps=5) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert said.startswith("lightning-stable: ") or "--ckpt_path" in said
    return said


# Checkpoints by the command line


def test_code_in_a_checkpoint_is_not_run(checkpoint, tmp_path, made, capsys):
    path = changed(checkpoint, tmp_path / "a.ckpt", lambda content: content.update(more=Hostile(made)))
    assert re.search(
        r"a\.ckpt cannot be loaded with `weights_only=True`: it asks for `\w+\.mkdir`", refused(capsys, tmp_path, path)
    )
    assert main(["validate", "--recipe", "charlm_adamw", "--ckpt_path", str(path)]) == 2


def test_neither_is_that_of_a_bare_pickle(tmp_path, made, capsys):
    (tmp_path / "a.ckpt").write_bytes(pickle.dumps(Hostile(made)))
    assert "a.ckpt cannot be loaded with `weights_only=True`: " in refused(capsys, tmp_path, tmp_path / "a.ckpt")


def test_nobody_can_ask_for_it_to_be_run(checkpoint, tmp_path, capsys):
    assert small_fit(tmp_path, "--weights_only=false", "--ckpt_path", str(checkpoint)) == 2
    assert "--weights_only" in capsys.readouterr().err
    (tmp_path / "more.yaml").write_text("weights_only: false\n")
    assert small_fit(tmp_path, "--config=more.yaml", "--ckpt_path", str(checkpoint)) == 2


@pytest.mark.filterwarnings("ignore:The dirpath has changed")
def test_a_checkpoint_behind_an_url_is_loaded_as_safely(checkpoint, tmp_path, monkeypatch):
    """Lightning would unpickle it."""
    asked = []

    def download(url, map_location=None, weights_only=False):
        asked.append((url, weights_only))
        return torch.load(checkpoint, weights_only=True)

    monkeypatch.setattr(torch.hub, "load_state_dict_from_url", download)
    files, web = torch_io.get_filesystem, SimpleNamespace(exists=lambda url: True)
    monkeypatch.setattr(torch_io, "get_filesystem", lambda path: web if str(path).startswith("http") else files(path))
    assert small_fit(tmp_path, GUARD, "--ckpt_path=http://localhost/last.ckpt", steps=5) == 0
    assert asked == [("http://localhost/last.ckpt", True)]


def test_a_class_that_a_checkpoint_names_is_not_imported(checkpoint, tmp_path, made, monkeypatch, capsys):
    (tmp_path / "hostile_module.py").write_text(f"import os\nos.mkdir({str(made)!r})\n")
    monkeypatch.syspath_prepend(tmp_path)

    def name_it(content):
        content["hyper_parameters"]["_class_path"] = "hostile_module.Model"

    path = changed(checkpoint, tmp_path / "a.ckpt", name_it)
    assert "a.ckpt is of the model 'hostile_module.Model', and the configuration has " in refused(
        capsys, tmp_path, path
    )
    assert "hostile_module" not in sys.modules


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ([1, 2], "is not a checkpoint of Lightning."),
        ({"hyper_parameters": {}}, "is not a checkpoint of Lightning."),
        ({"state_dict": {}, "hyper_parameters": "x"}, "is not a checkpoint of Lightning."),
        ({"state_dict": {}, "hyper_parameters": {1: 2}}, "the names of hyperparameters must be texts."),
    ],
)
def test_a_file_of_something_else_is_refused(tmp_path, content, said, capsys):
    torch.save(content, tmp_path / "a.ckpt")
    assert refused(capsys, tmp_path, tmp_path / "a.ckpt").endswith(said)


def test_an_absurd_state_of_the_guard_is_refused_in_one_line(checkpoint, tmp_path, capsys):
    def spoil(content):
        content["callbacks"]["SpikeGuard"]["ladder"]["used"] = "../../etc/passwd"

    path = changed(checkpoint, tmp_path / "a.ckpt", spoil)
    said = "`SpikeGuard` cannot take up the checkpoint: its `ladder.used` must be a list of whole numbers from 0, got "
    assert said in refused(capsys, tmp_path, path)


# Checkpoints and saved steps in Python


def test_the_trainer_runs_no_code_of_a_checkpoint_either(tmp_path, made):
    every = ModelCheckpoint(dirpath=tmp_path, filename="whole", every_n_train_steps=1)
    run(make_batches(4), [guard(SkipStep()), every], enable_checkpointing=True, epochs=1)
    path = changed(tmp_path / "whole.ckpt", tmp_path / "a.ckpt", lambda content: content.update(more=Hostile(made)))
    with pytest.raises(pickle.UnpicklingError, match="mkdir"):
        run(make_batches(4), [guard(SkipStep())], ckpt_path=path)


def test_a_place_behind_the_end_of_the_data_is_refused(tmp_path):
    every = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=1, save_top_k=-1)
    run(make_batches(6), [guard(SkipStep()), every], enable_checkpointing=True, epochs=1)

    def go_far(content):
        content["callbacks"]["SpikeGuard"]["resume"]["position"] = 10**6

    path = changed(tmp_path / "step=4.ckpt", tmp_path / "a.ckpt", go_far)
    with pytest.raises(
        ValueError, match="the checkpoint is 1000000 batches into its epoch, and the training data has "
    ):
        run(make_batches(6), [guard(SkipStep())], ckpt_path=path)


def saved_step(path, **changes):
    from lightning_stable.snapshots.random_state import RandomState

    content = {"batches": make_batches(1), "batch_indices": [0], "random_state": RandomState().state_dict()}
    torch.save({**content, "signal": "loss", **changes}, path)
    return str(path)


def test_a_saved_step_runs_no_code(tmp_path, made):
    with pytest.raises(ValueError, match=r"a\.pt cannot be loaded .*: it asks for `\w+\.mkdir`"):
        SavedStep(saved_step(tmp_path / "a.pt", more=Hostile(made)))
    step = SavedStep(saved_step(tmp_path / "good.pt"))
    torch.save({"state_dict": Net().state_dict(), "more": Hostile(made)}, tmp_path / "a.ckpt")
    for module in (Net(), "tests.faulty_runs.Net"):
        with pytest.raises(ValueError, match=r"a\.ckpt cannot be loaded .*: it asks for `\w+\.mkdir`"):
            step.repeat(module, str(tmp_path / "a.ckpt"))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"batches": 3}, "batches and their indices must be lists"),
        ({"batch_indices": [0, 1]}, "it has 1 batches and 2 indices"),
        ({"random_state": {"python": "x"}}, "its random state is none"),
    ],
)
def test_a_file_that_is_no_saved_step_is_refused(tmp_path, changes, problem):
    message = r"^`SavedStep\(path=...\)` must be a file that `SaveBatch` has written; .*a\.pt: "
    with pytest.raises(ValueError, match=message + problem):
        SavedStep(saved_step(tmp_path / "a.pt", **changes))
    torch.save([1], tmp_path / "a.pt")
    with pytest.raises(ValueError, match=message + "it holds something else"):
        SavedStep(str(tmp_path / "a.pt"))


ESCAPES = "\x1b[2J\x1b[31mred\x07 [bold]$x$ | <script>\r\nnew\u202e"


def test_a_saved_step_does_not_speak_to_the_terminal(tmp_path):
    batches = [{ESCAPES: torch.zeros(1), "text": ESCAPES}]
    lines = str(SavedStep(saved_step(tmp_path / "a.pt", signal=ESCAPES, batches=batches))).split("\n")
    assert all(line.isprintable() for line in lines)
    assert lines[1].startswith(r"signal: \x1b[2J")


# Configurations and logs


@pytest.mark.parametrize("tag", ["!!python/object/apply:os.mkdir", "!!python/object/new:os.mkdir"])
def test_yaml_makes_no_objects(tmp_path, made, tag, capsys):
    (tmp_path / "a.yaml").write_text(f"seed_everything: {tag} [{made}]\n")
    assert main(["fit", "--config", "a.yaml"]) == 2
    with pytest.raises(yaml.YAMLError):
        yaml.safe_load((tmp_path / "a.yaml").read_text())


def report(folder, capsys):
    """Its exit status, and all that it printed."""
    capsys.readouterr()
    status = main(["report", str(folder)])
    printed = capsys.readouterr()
    return status, printed.out + printed.err


@pytest.mark.filterwarnings("ignore:Glyph")
def test_a_report_shows_what_a_log_says_and_does_not_obey(tmp_path, capsys):
    pytest.importorskip("matplotlib")
    hostile = incident(3, ESCAPES, signal=ESCAPES)
    scalars = {"loss": falling(9), "train\x1b[31m_loss$": falling(9), "val\x1b_loss": falling(9)}
    status, printed = report(write_csv(tmp_path / "$a$ [b]", scalars, [hostile]), capsys)
    assert status == 0
    assert all(line.isprintable() for line in printed.split("\n"))
    assert r"\x1b[31mred\x07 [bold]$x$ | <script>\r\nnew\u202e" in printed


ABSURD_LINES = [
    '{"step": 1e400, "response": "SkipStep"}',
    '{"step": 3, "response": "SkipStep", "batches": 7}',
    '{"step": 3, "response": "SkipStep", "batches": ["x"]}',
    '{"step": 3, "response": "SkipStep", "seconds_lost": "long"}',
    '{"step": 3, "response": "SkipStep", "value": []}',
    '{"step": ' + "9" * 5000 + ', "response": "SkipStep"}',
    "[" * 100_000,
    "7",
    "\ufffd",
]


@pytest.mark.parametrize("line", ABSURD_LINES, ids=range(len(ABSURD_LINES)))
def test_absurd_incidents_are_refused_in_one_line(tmp_path, line, capsys):
    folder = write_csv(tmp_path / "run", {"loss": falling(9)})
    (folder / "incidents.jsonl").write_text(f"{line}\n{json.dumps(incident(3).to_json())}\n")
    status, printed = report(folder, capsys)
    assert status == 2
    assert re.fullmatch(r"lightning-stable report: .*incidents\.jsonl, line 1: not an incident \(.*\)\.\n", printed)


def test_bytes_that_are_no_text_are_no_end_of_the_report(tmp_path, capsys):
    folder = write_csv(tmp_path / "run", {"loss": falling(9)})
    with (folder / "metrics.csv").open("ab") as file:
        file.write(b"\xff\xfe,1\ninf,1\nnan,2\n")
    (folder / "incidents.jsonl").write_bytes(b"\xff\xfe")
    status, printed = report(folder, capsys)
    assert status == 0
    assert "torn, left out" in printed
    (folder / "metrics.csv").write_text("step,loss\n1," + "9" * 200_000 + "\n")
    status, printed = report(folder, capsys)
    assert status == 2
    assert "metrics.csv: not a table (" in printed


# What the guard itself shows


def test_the_guard_shows_names_as_they_are(tmp_path, capsys, monkeypatch):
    """The folder of a run, and a signal that a recipe names."""

    class Logs(Net):
        def training_step(self, batch, batch_idx):
            self.log(ESCAPES, torch.nn.functional.relu(torch.tensor(batch_idx - 4.0)) * torch.inf)
            return super().training_step(batch, batch_idx)

    monkeypatch.setenv("COLUMNS", "400")
    logger = TensorBoardLogger(tmp_path, name="[red]runs[/red]", version="[a]")
    guarded = SpikeGuard(watch={ESCAPES: MedianDeviation(warmup=3)}, ladder=[SkipStep(times=99), Halt()])
    run(make_batches(8), [guarded], model=Logs, logger=logger, epochs=1)
    assert guarded.incidents[0].signal == ESCAPES
    assert str(guarded.incidents[0]).isprintable()
    printed = capsys.readouterr()
    assert "[red]runs[/red]/[a]" in printed.out
    assert "\x1b" not in printed.out + printed.err
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    (text,) = {
        each.tensor_proto.string_val[0].decode() for each in events.Tensors("stability/incident/text_summary")[:1]
    }
    rows = text.split("\n")
    assert all(row.isprintable() for row in rows)
    assert {len(re.findall(r"(?<!\\)\|", row)) for row in rows} == {3}
    assert "<script" not in re.sub(r"\\<", "", text)
