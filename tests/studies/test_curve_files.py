# SPDX-License-Identifier: Apache-2.0
"""Small files of each kind, as loggers write them and as nobody should."""

import json
import pickle
import zipfile
from pathlib import Path

import numpy as np
import pytest
from lightning.pytorch.loggers import CSVLogger
from torch.utils.tensorboard import SummaryWriter

from lightning_stable.studies.curve import NoCurve
from lightning_stable.studies.curve_files import read_curve


class Hostile:
    """Writes a file when it is unpickled."""

    def __reduce__(self):
        return (Path.touch, (Path("it ran"),))


@pytest.fixture(autouse=True)
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    return tmp_path


def points(curve):
    return list(zip(curve.steps.tolist(), curve.values.tolist(), strict=True))


def write(name, text):
    path = Path(name)
    path.write_text(text, encoding="utf-8")
    return path


def write_events(folder, *pairs, suffix="", wall_time=None, tag="loss"):
    with SummaryWriter(folder, filename_suffix=suffix) as writer:
        for step, value in pairs:
            writer.add_scalar(tag, value, step, walltime=wall_time)


# CSV


def test_csv_with_a_title_line(folder):
    path = write("run.csv", "step,loss,lr\n10,3.5,0.1\n20,3.0,0.1\n")
    assert points(read_curve(path, "loss")) == [(10, 3.5), (20, 3.0)]
    assert points(read_curve(path, "loss", "lr")) == [(0.1, 3.5), (0.1, 3.0)]
    assert points(read_curve(path, "loss", "")) == [(0, 3.5), (1, 3.0)]


def test_csv_of_other_programs(folder):
    """A byte order mark, blanks, quotation marks, short and empty lines, a step axis that goes back."""
    text = '\ufeffstep, my loss ,note\r\n1,"3.5",a\r\n2, 3.0 \r\n\r\n3\r\n2,2.5,"two\r\nlines"\r\n'
    assert points(read_curve(write("RUN.CSV", text), "my loss")) == [(1, 3.5), (2, 3.0), (2, 2.5)]


def test_metrics_as_lightnings_logger_leaves_them(folder):
    logger = CSVLogger(folder, name="run", version=0)
    for step in range(6):
        logger.log_metrics({"train_loss": 4.0 - step}, step=step)
        if step % 2:
            logger.log_metrics({"val_loss": 2.0}, step=step)
    logger.log_metrics({"train_loss": float("nan")}, step=6)
    logger.finalize("success")
    for path in (Path(logger.log_dir), Path(logger.log_dir, "metrics.csv")):
        curve = read_curve(path, "train_loss")
        assert points(curve)[:6] == [(step, 4.0 - step) for step in range(6)]
        assert np.isnan(curve.values[6])
        assert points(read_curve(path, "val_loss")) == [(1, 2.0), (3, 2.0), (5, 2.0)]


def test_csv_that_is_none(folder):
    for text, message in (
        ("", "there is no column 'loss'. There are none."),
        ("step,los\n1,2\n", "there is no column 'loss'; did you mean 'los'? There are step, los."),
        ("step,loss\n", "there are no numbers in 'loss'."),
        ("step,loss\n1,high\n", "there are no numbers in 'loss'. 1 cell without a number left out, the first in "),
        (f'step,loss\n1,"{"x" * 200_000}"\n', "line 2: field larger than field limit (131072)."),
    ):
        with pytest.raises(NoCurve) as refusal:
            read_curve(write("run.csv", text), "loss")
        assert str(refusal.value).startswith(f"run.csv: {message}")
    Path("run.csv").write_bytes(b"step,loss\n1,\xff\xfe\n")
    with pytest.raises(NoCurve, match=r"^run\.csv: not a text in UTF-8"):
        read_curve(Path("run.csv"), "loss")


def test_a_step_column_that_is_not_there_is_refused(folder):
    with pytest.raises(NoCurve, match=r"there is no column 'epoch'\. There are step, loss\."):
        read_curve(write("run.csv", "step,loss\n1,2\n"), "loss", "epoch")


# JSON lines


def test_json_lines(folder):
    lines = ['{"step": 0, "loss": 3.5}', '{"step": 1, "lr": 0.1}', '{"step": 2, "loss": null}', "",
             '{"step": 3, "loss": NaN}', '{"step": 4, "loss": "inf"}', '{"step": 5, "loss": 2, "x": {}}']  # fmt: skip
    curve = read_curve(write("run.jsonl", "\n".join(lines)), "loss")
    assert str(points(curve)) == "[(0.0, 3.5), (3.0, nan), (4.0, inf), (5.0, 2.0)]"
    assert points(read_curve(Path("run.jsonl"), "lr", "")) == [(0, 0.1)]


def test_json_lines_without_steps_are_counted(folder):
    assert points(read_curve(write("run.ndjson", '{"a": 3}\n{"a": 2}\n'), "a")) == [(0, 3.0), (1, 2.0)]


def test_a_torn_last_line_is_left_out_and_said(folder):
    curve = read_curve(write("run.jsonl", '{"a": 3}\n{"a": 2'), "a")
    assert points(curve) == [(0, 3.0)]
    assert curve.notes[0].startswith("the last line is torn and left out: line 2: not JSON as it should be")


@pytest.mark.parametrize("line", ["{torn", "[1, 2]", "7", "[" * 100_000])
def test_a_line_that_is_no_object_is_an_error_with_its_number(folder, line):
    with pytest.raises(NoCurve, match=r"^run\.jsonl: line 2: not JSON as it should be"):
        read_curve(write("run.jsonl", f'{{"a": 3}}\n{line}\n{{"a": 2}}\n'), "a")


def test_a_key_that_is_not_there_is_refused_with_those_there_are(folder):
    with pytest.raises(NoCurve, match=r"there is no key 'c'\. There are a, b\."):
        read_curve(write("run.jsonl", '{"a": 3}\n{"b": 2}\n'), "c")


# npz


@pytest.mark.parametrize("kind", [np.float16, np.float32, np.float64, np.int32, np.bool_])
def test_npz(folder, kind):
    np.savez("run.npz", step=np.array([5, 6, 6], dtype=np.int32), loss=np.array([1, 0, 1], dtype=kind))
    assert points(read_curve(Path("run.npz"), "loss")) == [(5, 1.0), (6, 0.0), (6, 1.0)]


def test_nan_in_npz_is_a_value(folder):
    np.savez_compressed("run.npz", loss=np.array([1.0, np.nan, np.inf]))
    assert str(points(read_curve(Path("run.npz"), "loss"))) == "[(0.0, 1.0), (1.0, nan), (2.0, inf)]"


def test_npz_that_does_not_fit_is_refused(folder):
    np.savez("run.npz", step=np.arange(3), a=np.arange(2), b=np.ones((2, 2)), c=np.array([1j]), d=np.array(["x"]),
             e=np.array([]), f=np.array([np.nan, 1.0, 2.0]), g=np.arange(3))  # fmt: skip
    for column, step, message in (
        ("a", None, "'step' has 3 entries and 'a' 2. Name other steps with `--step-column`; '' counts the values."),
        ("b", "", "'b' must be one row of real numbers, got float64 with 2 axes."),
        ("c", "", "'c' must be one row of real numbers, got complex128 with 1 axes."),
        ("d", "", "'d' must be one row of real numbers, got <U1 with 1 axes."),
        ("e", "", "there are no numbers in 'e'."),
        ("g", "f", "the steps in 'f' are not all finite."),
        ("h", None, "there is no array 'h'. There are step, a, b, c, d, e, f, g."),
    ):
        with pytest.raises(NoCurve) as refusal:
            read_curve(Path("run.npz"), column, step)
        assert str(refusal.value) == f"run.npz: {message}"
    assert points(read_curve(Path("run.npz"), "a", "")) == [(0, 0.0), (1, 1.0)]


def test_nothing_in_an_npz_is_unpickled(folder):
    np.savez("objects.npz", loss=np.array([Hostile()], dtype=object), step=np.arange(1))
    Path("pickle.npz").write_bytes(pickle.dumps(Hostile()))
    with zipfile.ZipFile("inside.npz", "w") as archive:
        archive.writestr("loss.npy", pickle.dumps(Hostile()))
    for name in ("objects", "pickle", "inside"):
        with pytest.raises(NoCurve, match=rf"^{name}\.npz: "):
            read_curve(Path(f"{name}.npz"), "loss")
    assert not Path("it ran").exists()


def test_a_damaged_npz_is_an_error(folder):
    np.savez("whole.npz", loss=np.arange(1000.0))
    whole = Path("whole.npz").read_bytes()
    with zipfile.ZipFile("header.npz", "w") as archive:
        header = b"{'descr': '<f8', 'fortran_order': False, 'shape': (10000000000000000,), }"
        archive.writestr("loss.npy", b"\x93NUMPY\x01\x00" + len(header).to_bytes(2, "little") + header + b"123")
    Path("torn.npz").write_bytes(whole[:500])
    Path("bent.npz").write_bytes(whole[:300] + b"\x00\x01\x02" + whole[303:])
    Path("empty.npz").write_bytes(b"")
    np.save("single.npy", np.arange(3.0))
    Path("single.npy").rename("single.npz")
    for name in ("header", "torn", "bent", "empty", "single"):
        with pytest.raises(NoCurve, match=rf"^{name}\.npz: "):
            read_curve(Path(f"{name}.npz"), "loss")


# Event files


def test_an_event_file_and_its_folder(folder):
    write_events("run", (0, 4.0), (1, 3.0), (2, float("nan")))
    (file,) = Path("run").iterdir()
    for path in (Path("run"), file):
        assert str(points(read_curve(path, "loss"))) == "[(0.0, 4.0), (1.0, 3.0), (2.0, nan)]"
    assert points(read_curve(Path("run"), "loss", ""))[:2] == [(0, 4.0), (1, 3.0)]


def test_several_event_files_follow_each_other_as_they_were_begun_whatever_their_names(folder):
    write_events("run", (0, 4.0), (1, 3.0), suffix=".z", wall_time=100.0)
    write_events("run", (1, 2.5), (2, 2.0), suffix=".a", wall_time=200.0)
    for path, name in zip(sorted(Path("run").iterdir(), key=lambda path: path.suffix), ("2", "1"), strict=True):
        path.rename(path.with_name(f"events.out.tfevents.{name}"))
    curve = read_curve(Path("run"), "loss")
    assert points(curve) == [(0, 4.0), (1, 3.0), (1, 2.5), (2, 2.0)]


def test_a_step_axis_that_goes_back_stays_in_the_order_of_writing(folder):
    write_events("run", (0, 4.0), (1, 3.0), (2, 9.0), (1, 3.5), (2, 2.5))
    curve = read_curve(Path("run"), "loss")
    assert points(curve) == [(0, 4.0), (1, 3.0), (2, 9.0), (1, 3.5), (2, 2.5)]
    assert curve.rewinds.tolist() == [3]


def test_event_files_that_do_not_fit_are_refused(folder):
    write_events("runs/mine", (0, 4.0))
    for path, column, step, message in (
        ("runs/mine", "los", None, "there is no tag 'los'; did you mean 'loss'? There are loss."),
        ("runs/mine", "loss", "epoch", "event files have steps of their own; leave `--step-column` out."),
        ("runs", "loss", None, "no TensorBoard event files and no metrics.csv. Did you mean runs/mine?"),
    ):
        with pytest.raises(NoCurve) as refusal:
            read_curve(Path(path), column, step)
        assert str(refusal.value) == f"{path}: {message}"


def test_a_hostile_event_file_is_an_error(folder):
    Path("events.out.tfevents.noise").write_bytes(pickle.dumps(Hostile()) * 50)
    with pytest.raises(NoCurve, match="no scalars in the event files, or they are damaged"):
        read_curve(Path("events.out.tfevents.noise"), "loss")
    assert not Path("it ran").exists()


# Other files


def test_what_is_not_there_or_no_curve_is_refused(folder):
    write("run.txt", "1\n2\n")
    with pytest.raises(NoCurve, match=r"^no\.csv: no such file or folder\.$"):
        read_curve(Path("no.csv"), "loss")
    with pytest.raises(NoCurve, match=r"^run\.txt: its name must end in \.csv, \.jsonl or \.npz"):
        read_curve(Path("run.txt"), "loss")


def test_a_file_that_cannot_be_opened_is_refused(folder, monkeypatch):
    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    path = write("run.jsonl", json.dumps({"a": 1}))
    monkeypatch.setattr(Path, "open", refuse)
    with pytest.raises(NoCurve, match=r"^run\.jsonl: Permission denied\.$"):
        read_curve(path, "a")
