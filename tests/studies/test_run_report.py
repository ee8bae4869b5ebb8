# SPDX-License-Identifier: Apache-2.0
import sys
from pathlib import Path

import pytest

from lightning_stable.studies.run_log import read_run
from lightning_stable.studies.run_report import main, summary
from tests.studies.logged_runs import falling, incident, png_size, write_csv


def make_run(folder: Path, incidents=(), **more):
    scalars = {"stability/loss": falling(100), "stability/grad_norm": falling(100), "val_loss": {49: 2.5, 99: 2.25}}
    counted = {99: 100 - len(incidents) - sum(one.steps_rolled_back for one in incidents)}
    layers = {f"stability/attention_entropy/gpt.blocks.{layer}.attn": {99: 1.0} for layer in range(9)}
    return write_csv(folder, {**scalars, "stability/global_step": counted, **layers, **more}, incidents)


def test_a_run_with_incidents_is_told_in_tables_a_picture_and_a_sentence(tmp_path, capsys):
    folder = make_run(tmp_path, [incident(7), incident(50, "Rollback", steps_rolled_back=5, batches=[48, 49, 50])])
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "   7      0      7  loss      nan    2.5  SkipStep" in out
    assert "  50      0  48-50  loss      nan    2.5  Rollback       5" in out
    assert png_size(folder / "report.png")[0] == 1200
    sentence = " ".join(out.splitlines()[-2:])
    assert sentence == (
        "Survived 2 incidents (1 x SkipStep, 1 x Rollback) in 93 optimizer steps (100 tried), 0.5 s lost;"
        " last val_loss 2.25."
    )


def test_the_causes_that_were_found_have_a_column(tmp_path, capsys):
    causes = ["the state: the batch is fine from step 40", "the data", ""]
    incidents = [incident(10 * index, cause=cause) for index, cause in enumerate(causes)]
    assert main([str(make_run(tmp_path, incidents))]) == 0
    rows = [line for line in capsys.readouterr().out.splitlines() if "SkipStep" in line][:3]
    assert [row.partition("SkipStep")[2].strip() for row in rows] == ["the state", "the data", ""]


def test_no_line_of_a_guarded_run_is_wider_than_a_terminal(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    many = [incident(step, "ResetMomentum", signal="stability/attention_entropy/min") for step in range(40)]
    logged = {"stability/attention_max_logit/max": {0: 1e-30}, "stability/lr_scale/momentum_reset": {0: -1.234e-10}}
    folder = make_run(Path("a"), many, **logged)
    make_run(Path("b"))
    assert main([str(folder), "--compare", "b"]) == 0
    out = capsys.readouterr().out
    assert max(map(len, out.splitlines())) <= 90  # the longest signal and the longest response in one row
    assert max(len(line) for line in out[out.index("Metrics") :].splitlines()) <= 80
    assert out.count("ResetMomentum") == 31  # 30 rows and the last sentence
    assert "and 10 more incidents: a/incidents.jsonl" in out
    assert "and 9 more metrics" in out
    assert "global_step" not in out


def test_a_run_without_incidents_says_so(tmp_path, capsys):
    assert main([str(write_csv(tmp_path, {"train_loss": falling(100)}))]) == 0
    out = capsys.readouterr().out
    assert f"No incidents in {tmp_path}." in out
    assert out.endswith("No incidents in 100 steps; last train_loss 1.04.\n")


def test_a_lost_run_is_called_lost(tmp_path):
    loss = {step: float("nan") if step >= 60 else 2.0 for step in range(100)}
    log = read_run(write_csv(tmp_path, {"train_loss": loss}))
    assert summary(log) == "No incidents in 100 steps; the loss is not finite from step 60; last train_loss nan."


def test_a_halted_run_is_called_halted(tmp_path):
    log = read_run(make_run(tmp_path, [incident(7), incident(8, "Halt")]))
    assert summary(log).startswith("Halted by 2 incidents")


def test_warnings_have_a_table_of_their_own(tmp_path, capsys):
    told = {"value": 2.25, "threshold": 1.5, "notes": ["raised by LevelShift"], "seconds_lost": 0.0}
    folder = write_csv(tmp_path, {"train_loss": falling(100)}, [incident(40, "Warning", **told)])
    assert main([str(folder)]) == 0
    out = capsys.readouterr().out
    assert "about which nothing was done" in out
    assert "  40      0     40  loss     2.25    1.5  raised by LevelShift" in out
    assert out.endswith("No incidents in 100 steps; warned 1 time; last train_loss 1.04.\n")


def test_a_second_run_is_a_column_and_a_grey_curve(tmp_path, capsys):
    one, other = make_run(tmp_path / "one"), write_csv(tmp_path / "other", {"val_loss": {9: 7.125}})
    assert main([str(one), "--compare", str(other)]) == 0
    assert any(line.startswith("val_loss") and line.endswith("7.125") for line in capsys.readouterr().out.splitlines())


def test_the_picture_goes_where_it_is_told(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    assert main([str(folder), "--out", str(tmp_path / "mine.png")]) == 0
    assert (tmp_path / "mine.png").is_file()
    assert not (folder / "report.png").exists()
    assert f"Picture: {tmp_path / 'mine.png'}" in capsys.readouterr().out


def test_the_newest_of_several_runs(tmp_path, capsys):
    make_run(tmp_path / "run" / "version_0")
    assert main(["--newest", str(tmp_path)]) == 0
    assert (tmp_path / "run" / "version_0" / "report.png").is_file()
    assert main(["--newest", str(tmp_path / "nothing")]) == 2
    assert "no run in it" in capsys.readouterr().err


@pytest.mark.parametrize("missing", ["no/such/run", "empty"])
def test_a_folder_that_is_no_run_is_an_error(tmp_path, capsys, missing):
    (tmp_path / "empty").mkdir()
    assert main([str(tmp_path / missing)]) == 2
    captured = capsys.readouterr()
    assert captured.out == ""
    assert captured.err.startswith(f"lightning-stable report: {tmp_path / missing}: no ")
    assert not list(tmp_path.rglob("*.png"))


def test_a_torn_last_line_is_said_and_the_rest_reported(tmp_path, capsys):
    write_csv(tmp_path, {"loss": falling(9)}, [incident(3)], torn='{"step": 5, "va')
    assert main([str(tmp_path)]) == 0
    captured = capsys.readouterr()
    assert "line 2: torn, left out." in captured.err
    assert "Survived 1 incident (1 x SkipStep)" in captured.out


def test_a_folder_that_cannot_be_written_still_gives_the_tables(tmp_path, capsys, monkeypatch):
    folder = make_run(tmp_path)

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("matplotlib.figure.Figure.savefig", refuse)
    assert main([str(folder)]) == 2
    captured = capsys.readouterr()
    assert (
        f"cannot write {folder / 'report.png'}: Permission denied. Choose another place with `--out`." in captured.err
    )
    assert "Metrics" in captured.out


def test_a_picture_in_a_folder_that_is_not_there_is_an_error(tmp_path, capsys):
    folder = make_run(tmp_path / "run")
    assert main([str(folder), "--out", str(tmp_path / "no" / "such" / "x.png")]) == 2
    assert "No such file or directory" in capsys.readouterr().err


def test_without_matplotlib_there_are_tables_and_the_remedy(tmp_path, capsys, monkeypatch):
    folder = make_run(tmp_path)
    for name in [name for name in sys.modules if name.startswith("matplotlib.") or name.endswith(".run_picture")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert main([str(folder)]) == 0
    captured = capsys.readouterr()
    assert "No picture: it needs matplotlib. pip install 'lightning-stable[recipes]'" in captured.err
    assert "Metrics" in captured.out
