# SPDX-License-Identifier: Apache-2.0
"""A table, a file with every number, a picture for TensorBoard; and words where one of them cannot be had."""

import builtins
import csv
import pickle
import sys

import pytest
from lightning.pytorch.callbacks import TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_stable.callbacks import LRRangeTest
from lightning_stable.callbacks.range_test.curve import RangeCurve
from lightning_stable.callbacks.range_test.report import ProgressNotes, csv_of, print_table, rows_of
from lightning_stable.callbacks.range_test.sides import RangeTestResult
from tests.callbacks.range_test.ranged_runs import SHORT, Net, fit

FILES = ["lr_range_test.csv", "lr_range_test.png"]


def names(folder):
    return sorted(path.name for path in folder.glob("*lr_range_test*"))


def test_files_are_in_the_log_directory_or_where_they_are_wanted_and_nowhere_without_a_logger(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(Net(), LRRangeTest(**SHORT), logger=CSVLogger(tmp_path / "logs"), log_every_n_steps=1)
    assert names(tmp_path / "logs" / "lightning_logs" / "version_0") == FILES
    fit(Net(), LRRangeTest(path=str(tmp_path / "a" / "b"), **SHORT))
    assert names(tmp_path / "a" / "b") == FILES
    fit(Net(), LRRangeTest(**SHORT))
    assert names(tmp_path) == []


def test_the_file_has_every_number_of_every_curve(tmp_path):
    callback = LRRangeTest(path=str(tmp_path), momentum=[0.5], weight_decay=[0.0, 0.1], **SHORT)
    fit(Net(), callback)
    with (tmp_path / "lr_range_test.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    result = callback.result
    assert [float(row["loss"]) for row in rows if row["test"] == "lr"] == result.losses
    for test, curves in (("momentum", result.of_momentum), ("weight_decay", result.of_weight_decay)):
        for value, curve in curves.items():
            of_curve = [row for row in rows if row["test"] == test and float(row["value"]) == value]
            assert [float(row["lr"]) for row in of_curve] == curve.rates
            assert [float(row["smoothed_loss"]) for row in of_curve] == curve.smoothed


def test_tensorboard_shows_the_picture(tmp_path):
    logger = TensorBoardLogger(tmp_path)
    fit(Net(), LRRangeTest(**SHORT), logger=logger, log_every_n_steps=1)
    logger.finalize("success")
    events = EventAccumulator(logger.log_dir)
    events.Reload()
    (image,) = events.Images("stability/lr_range_test")
    assert image.step == 0
    assert image.encoded_image_string.startswith(b"\x89PNG")


def test_without_matplotlib_there_is_a_sentence_and_no_picture(tmp_path, monkeypatch, caplog):
    real = builtins.__import__

    def without(name, *args, **kwargs):
        if name.partition(".")[0] == "matplotlib":
            raise ModuleNotFoundError("No module named 'matplotlib'", name="matplotlib")
        return real(name, *args, **kwargs)

    monkeypatch.delitem(sys.modules, "lightning_stable.callbacks.range_test.picture", raising=False)
    monkeypatch.setattr(builtins, "__import__", without)
    callback = LRRangeTest(path=str(tmp_path), **SHORT)
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(Net(), callback)
    assert "no picture, it needs matplotlib. pip install 'lightning-stable[recipes]'" in caplog.text
    assert names(tmp_path) == FILES[:1]


def test_a_folder_that_cannot_be_written_to_does_not_end_the_run(tmp_path):
    (tmp_path / "file").write_text("")
    callback = LRRangeTest(path=str(tmp_path / "file" / "folder"), **SHORT)
    with pytest.warns(UserWarning, match=r"cannot write to .*folder \(Not a directory\). The run goes on"):
        trainer = fit(Net(), callback)
    assert trainer.global_step == 2
    assert callback.result is not None


RESULT = RangeTestResult(
    rates=[0.1, 1.0],
    losses=[2.0, 9.0],
    smoothed=[2.0, 6.0],
    max_lr=0.1,
    min_lr=0.01,
    steepest_lr=0.05,
    diverged=True,
    momentum=0.9,
    of_momentum={
        0.9: RangeCurve([0.1], [2.0], [2.0], 0.1, True, None),
        0.99: RangeCurve([], [], [], None, True, None),
    },
    steps=7,
)


@pytest.mark.parametrize("rich", [True, False])
def test_the_table_says_what_is_recommended(rich, monkeypatch, capsys):
    if not rich:
        for name in ("rich.console", "rich.table", "rich.text"):
            monkeypatch.setitem(sys.modules, name, None)
    print_table(rows_of(RESULT))
    text = capsys.readouterr().out
    for part in (
        "LRRangeTest",
        "0.1, the largest rate that held",
        "0.01, a tenth of it",
        "0.05, where the loss falls fastest",
        "max_lr 0.1, lowest loss 2  <- recommended",
        "none held, no loss",
        "7, and undone",
    ):
        assert part in text


def test_a_curve_without_values_is_no_line_of_the_file():
    assert csv_of(RESULT).decode().splitlines() == [
        "test,value,lr,loss,smoothed_loss",
        "lr,,0.1,2.0,2.0",
        "lr,,1.0,9.0,6.0",
        "momentum,0.9,0.1,2.0,2.0",
    ]


def test_a_result_can_be_pickled():
    assert pickle.loads(pickle.dumps(RESULT)) == RESULT


def test_a_long_test_says_now_and_then_how_far_it_is(caplog):
    seconds = iter([0.0, 4.9, 5.1, 6.0, 15.0, 15.2])
    notes = ProgressNotes(100, lambda: next(seconds))
    with caplog.at_level("INFO", "lightning.pytorch"):
        for taken in range(1, 6):
            notes(taken)
    said = [record.getMessage() for record in caplog.records]
    assert said == ["LRRangeTest: 2 steps tried, of 100 at most", "LRRangeTest: 5 steps tried, of 100 at most"]


@pytest.mark.parametrize("shown", [True, False])
def test_how_far_it_is_goes_with_the_progress_bar(shown, monkeypatch, caplog):
    monkeypatch.setattr("lightning_stable.callbacks.range_test.report._FIRST", 0.0)
    callbacks = [LRRangeTest(**SHORT)] + ([TQDMProgressBar()] if shown else [])
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(Net(), *callbacks, enable_progress_bar=shown)
    assert ("steps tried, of" in caplog.text) is shown


def test_no_more_steps_are_tried_than_it_says_at_most(monkeypatch):
    totals = []
    monkeypatch.setattr(
        "lightning_stable.callbacks.lr_range_test.ProgressNotes", lambda total: totals.append(total) or (lambda n: None)
    )
    for arguments in ({}, {"momentum": [0.5, 0.9]}, {"max_lr": 0.01}):
        callback = LRRangeTest(**{**SHORT, **arguments})
        fit(Net(), callback, TQDMProgressBar(), enable_progress_bar=True)
        assert totals.pop() / 3 < callback.result.steps
        fit(Net(), callback, TQDMProgressBar(), enable_progress_bar=True)
        assert callback.result.steps <= totals.pop()
