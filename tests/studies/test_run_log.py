# SPDX-License-Identifier: Apache-2.0
import math

import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_stable.studies.run_log import NoRun, RunLog, lost_from, newest_run, not_finite_stretches, read_run
from tests.studies.logged_runs import falling, incident, write_csv


def test_csv_and_tensorboard_say_the_same(tmp_path):
    values = {0: 4.0, 1: 3.0, 2: math.nan}
    write_csv(tmp_path / "csv", {"train_loss": values})
    writer = SummaryWriter(tmp_path / "events")
    for step, value in values.items():
        writer.add_scalar("train_loss", value, step)
    writer.close()
    for name in ("csv", "events"):
        points = read_run(tmp_path / name).scalars["train_loss"]
        assert points[:2] == [(0, 4.0), (1, 3.0)]
        assert points[2][0] == 2
        assert math.isnan(points[2][1])


def test_of_two_values_at_one_step_the_later_stays(tmp_path):
    (tmp_path / "metrics.csv").write_text("step,a\n3,1.0\n1,0.5\n3,2.0\n,9\n4,word\n")
    assert read_run(tmp_path).scalars == {"a": [(1, 0.5), (3, 2.0)]}


def test_steps_that_count_are_those_the_guard_counted(tmp_path):
    counted = {8: 7, 9: 7, 10: 8}
    folder = write_csv(tmp_path, {"stability/loss": falling(20), "stability/global_step": counted}, [incident(9)])
    log = read_run(folder)
    assert (log.steps_tried, log.optimizer_steps) == (20, 17)  # 8 after step 10, and 9 more


def test_without_a_guard_every_step_counts(tmp_path):
    log = read_run(write_csv(tmp_path, {"train_loss": falling(20)}))
    assert (log.steps_tried, log.optimizer_steps, log.last_step) == (20, 20, 19)
    assert (RunLog(tmp_path).steps_tried, RunLog(tmp_path).optimizer_steps) == (0, 0)


def test_curves_are_found_under_the_usual_tags(tmp_path):
    points = [(0, 1.0)]
    log = RunLog(tmp_path, {"val_loss": points, "train_loss_epoch": points, "my_loss": points, "lr-AdamW": points})
    assert log.loss == log.learning_rate == points
    assert log.validation_loss == ("val_loss", points)
    assert log.gradient_norm == []
    assert RunLog(tmp_path, {"val_loss": points}).loss == []


def test_the_name_is_the_folder_and_the_one_above(tmp_path, monkeypatch):
    folder = tmp_path / "mine" / "version_3"
    folder.mkdir(parents=True)
    monkeypatch.chdir(folder)
    assert RunLog(folder).name == RunLog(folder.relative_to(folder)).name == "mine/version_3"


@pytest.mark.parametrize("torn", ['{"step": 9, "resp', '{"step": 9}', "null"])
def test_a_torn_last_line_is_left_out_and_said(tmp_path, torn):
    log = read_run(write_csv(tmp_path, {"loss": falling(9)}, [incident(3)], torn))
    assert [one["step"] for one in log.incidents] == [3]
    assert log.notes == [f"{tmp_path / 'incidents.jsonl'}, line 2: torn, left out."]


def test_damage_before_the_last_line_is_refused(tmp_path):
    write_csv(tmp_path, {"loss": falling(9)}, [incident(3)])
    path = tmp_path / "incidents.jsonl"
    path.write_text("{broken\n" + path.read_text())
    with pytest.raises(NoRun, match=r"incidents\.jsonl, line 1: not an incident"):
        read_run(tmp_path)


def test_values_that_json_cannot_say_come_back(tmp_path):
    incidents = [incident(3, value=math.inf, threshold=math.inf), incident(4, value=math.nan)]
    log = read_run(write_csv(tmp_path, {"loss": falling(9)}, incidents))
    assert log.incidents[0]["value"] == log.incidents[0]["threshold"] == math.inf
    assert math.isnan(log.incidents[1]["value"])


def test_warnings_are_no_incidents(tmp_path):
    log = read_run(write_csv(tmp_path, {}, [incident(3), incident(9, "Warning", notes=["raised by LevelShift"])]))
    assert [one["step"] for one in log.incidents] == [3]
    assert [(one["step"], one["notes"]) for one in log.warnings] == [(9, ["raised by LevelShift"])]
    assert log.last_step == 9


def test_a_folder_of_runs_is_no_run_and_the_message_names_the_runs_in_it(tmp_path):
    write_csv(tmp_path / "mine" / "version_0", {"loss": falling(3)})
    with pytest.raises(NoRun, match=r"no TensorBoard event files.*Did you mean .*mine/version_0\?"):
        read_run(tmp_path)


def test_an_empty_folder_is_no_run(tmp_path):
    with pytest.raises(NoRun, match=r"no metrics.csv and no incidents.jsonl\.$"):
        read_run(tmp_path)
    (tmp_path / "metrics.csv").write_text("")
    with pytest.raises(NoRun, match=r"no metrics\.csv"):
        read_run(tmp_path)


def test_the_newest_run_is_the_one_written_last(tmp_path):
    import os

    for index, name in enumerate(("b", "c", "a")):
        folder = write_csv(tmp_path / name, {"loss": falling(3)})
        os.utime(folder / "metrics.csv", (index, index))
    assert newest_run(tmp_path).name == "a"


def test_stretches_and_the_step_from_which_a_run_is_lost():
    nan, inf = math.nan, math.inf
    assert not_finite_stretches([]) == []
    assert not_finite_stretches([(0, nan), (1, 1.0), (4, inf), (6, nan)]) == [(0, 1), (4, 6)]
    assert lost_from([(0, nan), (1, 1.0), (4, inf), (6, nan)]) == 4
    assert lost_from([(0, nan), (1, 1.0)]) is None
    assert lost_from([]) is None
    assert lost_from([(7, nan)]) == 7
