# SPDX-License-Identifier: Apache-2.0
"""`lightning-stable detect`, on small files of each kind."""

import json
import os
import re
import sys
from pathlib import Path

import numpy as np
import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_stable.studies.detector_choice import known_detectors
from lightning_stable.studies.replay_report import main
from tests.studies.logged_runs import png_size, write_csv


def losses(length=3000):
    """A healthy loss with three spikes in a row and one NaN."""
    values = 2.0 + np.random.default_rng(0).normal(0, 0.05, length)
    values[2000:2003] = [9.0, 8.0, 7.0]
    values[2500] = np.nan
    return values


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def write_all_kinds():
    """The same losses as each kind of file that is read."""
    values = losses()
    rows = [f"{step},{value!r},\n{step},,0.1" for step, value in enumerate(values.tolist())]
    Path("run.csv").write_text("\n".join(["step,loss,lr", *rows]))
    lines = [json.dumps({"step": step, "loss": value}) for step, value in enumerate(values.tolist())]
    Path("run.jsonl").write_text("\n".join(lines))
    np.savez("run.npz", step=np.arange(len(values)), loss=values)
    with SummaryWriter("run") as writer:
        for step, value in enumerate(values.tolist()):
            writer.add_scalar("loss", value, step, new_style=True, double_precision=True)
    write_csv(Path("logged"), {"loss": dict(enumerate(values.tolist()))})
    return ["run.csv", "run.jsonl", "run.npz", "run", "logged"]


def told(capsys, *arguments):
    """Exit status, and what was printed and said."""
    status = main(list(arguments))
    captured = capsys.readouterr()
    return status, captured.out, captured.err


def row(out, beginning):
    """The cells of the first row of a table that begins so."""
    line = next(line for line in out.splitlines() if line.lstrip().startswith(beginning))
    return re.split(r"\s{2,}", line.strip())


def test_every_kind_of_file_says_the_same_and_is_drawn(capsys):
    told_of = []
    for path in write_all_kinds():
        status, out, err = told(capsys, "--values", path, "--column", "loss", "--out", f"{path}.png")
        assert (status, err) == (0, "")
        assert png_size(Path(f"{path}.png"))[0] == 1200
        summary, _, rest = out.partition("\n\n")
        assert " ".join(summary.split()).endswith(": 3000 values, steps 0 to 2999, from 1.805 to 9; 1 not finite.")
        told_of.append(rest.rpartition("Picture: ")[0])
    assert len(set(told_of)) == 1


def test_the_tables_say_what_was_found(capsys):
    np.savez("run.npz", loss=losses())
    status, out, _ = told(capsys, "--values", "run.npz", "--column", "loss")
    assert status == 0
    assert row(out, "MedianDeviation") == ["MedianDeviation(min_ratio=1.05)", "4", "2", "1333", "1"]
    assert row(out, "LevelShift") == ["LevelShift()", "1", "1", "333.3", "1"]
    step, value, threshold, score, in_a_row = row(out, "2000")
    assert (step, value, in_a_row) == ("2000", "9", "3")
    assert abs(float(threshold) - (2.0 + 16 * 0.05)) < 0.2  # 16 deviations of the noise above the level
    assert float(score) > 50
    assert row(out, "2500")[1] == "nan"
    assert row(out, "2500")[3:] == ["inf", "1"]
    assert out.endswith("Picture: detect.png\n")
    assert png_size(Path("detect.png"))[0] == 1200
    assert max(map(len, out.splitlines())) <= 130


def test_a_level_that_shifts_is_told_as_level_and_limit(capsys):
    np.savez("run.npz", loss=np.where(np.arange(6000) < 4000, 2.0, 3.0))
    _, out, _ = told(capsys, "--values", "run.npz", "--column", "loss", "--detector", "LevelShift")
    assert row(out, "step") == ["step", "level", "limit", "score", "in a row"]
    assert row(out, "4299")[1:3] == ["2.15", "2.1"]


def test_ten_streaks_are_shown_and_the_others_counted(capsys):
    values = np.ones(100)
    values[5::4] = 3.0
    np.savez("run.npz", loss=values)
    _, out, _ = told(capsys, "--values", "run.npz", "--column", "loss", "--detector", "Above(limit=2)")
    table = out.partition("Above(limit=2.0)\n\n")[2].partition("\n\n")[0]
    assert [line.split()[0] for line in table.splitlines()[2:12]] == [str(step) for step in range(5, 45, 4)]
    assert "and 14 streaks more\n" in out


def test_the_suggestion_holds_what_it_promises(capsys):
    values = 2.0 + 0.05 * np.abs(np.random.default_rng(0).standard_t(3, 20_000))
    np.savez("run.npz", loss=values)
    common = ("--values", "run.npz", "--column", "loss", "--false-alarms-per-million", "500")
    _, out, _ = told(capsys, *common, "--detector", "ZScore", "--detector", "LevelShift")
    assert "at most 500 false alarms per million, tried on 20000 values" in out
    assert "500 per million are 10 in 20000 values." in out
    (suggested,) = re.findall(r"--detector '(ZScore\(.*?\))'", out)
    before = int(row(out, "ZScore()")[1])
    _, again, _ = told(capsys, *common, "--detector", suggested)
    assert int(row(again, suggested)[1]) <= 10 < before
    assert "LevelShift: whatever `min_rise` is, its other arguments keep it quiet here." in out


def test_a_short_curve_says_that_it_is_too_short_to_tell(capsys):
    np.savez("run.npz", loss=losses())
    _, out, _ = told(capsys, "--values", "run.npz", "--column", "loss")
    text = " ".join(out.split())
    assert (
        "3000 values, less than the 1000000 in which one alarm is allowed: the thresholds are those for no alarm at all"
        " on this curve."
    ) in text
    assert "Every alarm at a finite value counts as a false one; `--healthy FROM:TO` says " in text
    _, out, _ = told(capsys, "--values", "run.npz", "--column", "loss", "--false-alarms-per-million", "0")
    assert "3000 values: the thresholds are those for no alarm at all" in " ".join(out.split())


def test_what_is_healthy_can_be_said(capsys):
    np.savez("run.npz", step=10 * np.arange(3000), loss=losses())
    common = ("--values", "run.npz", "--column", "loss", "--detector", "ZScore", "--healthy")
    suggested = {}
    for span, values in (("0:19990", 2000), (":19990", 2000), ("15000:19990", 500), ("0:", 3000)):
        _, out, _ = told(capsys, *common, span)
        assert f"tried on the {values} values of `--healthy`" in out
        assert "Every alarm" not in out
        suggested[span] = float(row(out.partition("Suggested")[2], "ZScore()")[4])
    assert suggested["0:19990"] == suggested[":19990"] < suggested["0:"]
    status, _, err = told(capsys, *common, "50000:60000")
    assert status == 2
    assert "there is no value in `--healthy 50000:60000`; the steps are 0 to 29990." in err


def test_a_detector_without_a_threshold_or_without_a_limit_is_told_so(capsys):
    np.savez("run.npz", loss=np.ones(10))
    names = [each for name in ("NonFinite", "LevelShift") for each in ("--detector", name)]
    _, out, _ = told(capsys, "--values", "run.npz", "--column", "loss", *names)
    assert row(out.partition("Suggested")[2], "NonFinite")[1] == "none to tune"
    assert "LevelShift() never had a limit: the curve is too short for it." in out
    assert "NonFinite() never" not in out


def test_every_detector_of_the_room_can_be_asked(capsys):
    np.savez("run.npz", loss=losses(2600))
    names = [each for name in known_detectors() for each in ("--detector", name)]
    status, out, _ = told(capsys, "--values", "run.npz", "--column", "loss", *names, *names)
    assert status == 0
    assert all(out.count(f"\n{name}()  ") == 2 for name in known_detectors())  # in two tables, though asked for twice


def test_steps_that_go_back_are_said(capsys):
    np.savez("run.npz", step=np.concatenate([np.arange(100), np.arange(50, 150)]), loss=np.ones(200))
    _, out, _ = told(capsys, "--values", "run.npz", "--column", "loss")
    assert "the steps go back once, values stay in the order of writing." in " ".join(out.split())


def test_what_was_left_out_is_said(capsys):
    Path("run.csv").write_text("step,loss\n0,1\n1,word\n2,3\n")
    status, _, err = told(capsys, "--values", "run.csv", "--column", "loss")
    assert status == 0
    assert err == ("lightning-stable detect: run.csv: 1 cell without a number left out, the first in line 3: 'word'.\n")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--values", "no.csv", "--column", "loss"], "no.csv: no such file or folder."),
        (
            ["--values", "run.csv", "--column", "los"],
            "run.csv: there is no column 'los'; did you mean 'loss'? There are",
        ),
        (["--values", "run.csv"], "run.csv: choose one with `--column`. There are step, loss, lr."),
        (["--values", "run.csv", "--column", "lr"], "run.csv: there are no numbers in 'lr'."),
        (
            ["--values", "run.csv", "--column", "loss", "--step-column", "x"],
            "run.csv: there is no column 'x'. There are",
        ),
        (
            ["--values", "run.csv", "--column", "loss", "--detector", "Zscore"],
            "there is no detector 'Zscore'; did you ",
        ),
        (
            ["--values", "run.csv", "--column", "loss", "--detector", "ZScore(window=0)"],
            "`ZScore(window=...)` must be ",
        ),
        (["--values", "bad.npz", "--column", "loss"], "bad.npz: damaged, or not an .npz archive"),
        (["--values", "events.out.tfevents.1", "--column", "loss"], "events.out.tfevents.1: no scalars in the event"),
    ],
)
def test_what_is_wrong_is_one_line_and_exit_status_2(capsys, arguments, message):
    Path("run.csv").write_text("step,loss,lr\n0,1,\n1,2,\n")
    for name in ("bad.npz", "events.out.tfevents.1"):
        Path(name).write_bytes(b"PK\x03\x04 no archive")
    status, out, err = told(capsys, *arguments)
    assert (status, out) == (2, "")
    assert err.startswith(f"lightning-stable detect: {message}")
    assert err.count("\n") == 1
    assert not Path("detect.png").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--column", "loss"], "the following arguments are required: --values"),
        (["--values", "x", "--false-alarms-per-million", "-1"], "must be a number from 0 to 1000000, got '-1'"),
        (["--values", "x", "--false-alarms-per-million", "few"], "must be a number from 0 to 1000000, got 'few'"),
        (["--values", "x", "--healthy", "5"], "must be two steps such as 1000:90000, 1000: or :90000, got '5'"),
        (["--values", "x", "--healthy", "9:1"], "must be two steps such as 1000:90000, 1000: or :90000, got '9:1'"),
        (["--values", "x", "--healthy", "a:b"], "must be two steps such as 1000:90000, 1000: or :90000, got 'a:b'"),
    ],
)
def test_arguments_that_make_no_sense_are_refused(capsys, arguments, message):
    with pytest.raises(SystemExit) as stop:
        main(arguments)
    assert stop.value.code == 2
    assert message in capsys.readouterr().err


def test_a_large_file_is_announced(capsys):
    Path("run.npz").write_bytes(b"no archive")
    os.truncate("run.npz", 30_000_000)
    status, _, err = told(capsys, "--values", "run.npz", "--column", "loss")
    assert status == 2
    assert err.startswith("lightning-stable detect: reading 30 MB\n")


def test_without_matplotlib_there_are_tables_and_the_remedy(capsys, monkeypatch):
    np.savez("run.npz", loss=losses())
    for name in [name for name in sys.modules if name.startswith("matplotlib.") or name.endswith(".replay_picture")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    status, out, err = told(capsys, "--values", "run.npz", "--column", "loss")
    assert status == 0
    assert "Suggested" in out
    assert err == "No picture: it needs matplotlib. pip install 'lightning-stable[recipes]'\n"


def test_a_picture_that_cannot_be_written_is_exit_status_2_and_the_tables_are_there(capsys):
    np.savez("run.npz", loss=losses())
    status, out, err = told(capsys, "--values", "run.npz", "--column", "loss", "--out", "no/such/folder/x.png")
    assert status == 2
    assert "Suggested" in out
    assert "cannot write no/such/folder/x.png: No such file or directory. Choose another place with `--out`." in err


def test_help_has_examples(capsys):
    with pytest.raises(SystemExit):
        main(["--help"])
    out = capsys.readouterr().out
    assert "--detector 'LevelShift(min_rise=0.2)'" in out
    assert "{class_path: LevelShift, init_args: {min_rise: 0.2}}" in out
