# SPDX-License-Identifier: Apache-2.0
import json

import pytest
from torch.utils.tensorboard import SummaryWriter

from lightning_stable.cli import main
from lightning_stable.schedules import Refined
from lightning_stable.schedules.refine import load_schedule
from lightning_stable.studies.refinement import NoNorms, read_norms


def record(folder, norms, norm="l1"):
    folder.mkdir(exist_ok=True)
    content = {"norm": norm, "steps_per_value": 1, "gradient_norms": norms}
    (folder / "gradient_norms.json").write_text(json.dumps(content))


def test_recorded_norms_become_a_schedule_a_table_and_a_picture(tmp_path, capsys):
    record(tmp_path / "run", [2.0] * 50)
    assert main(["refine", str(tmp_path / "run")]) == 0
    said = capsys.readouterr().out
    assert "Schedule of 50 l1 norms" in said
    assert "50% 2 0.500 0.500" in " ".join(said.split())
    path = tmp_path / "run" / "refined_schedule.json"
    assert f"--lr_scheduler.profile.path={path} --lr_scheduler.warmup_steps=0" in said
    assert "Adam wants l1" not in said
    assert load_schedule(tmp_path / "run" / "refined_schedule.json") == pytest.approx([1 - k / 49 for k in range(50)])
    assert (tmp_path / "run" / "refined_schedule.png").read_bytes().startswith(b"\x89PNG")
    assert Refined(str(tmp_path / "run" / "refined_schedule.json")).factor(5, 10) == pytest.approx(0.5)


def test_tensorboard_s_norms_will_do(tmp_path, capsys):
    with SummaryWriter(str(tmp_path / "run")) as writer:
        for step in range(20):
            writer.add_scalar("stability/grad_norm", 1.0 + step, step)
    norms = read_norms(tmp_path / "run")
    assert norms.values == [1.0 + step for step in range(20)]
    assert norms.norm == "l2"
    out = tmp_path / "mine.json"
    assert main(["refine", str(tmp_path / "run"), "--out", str(out), "--norm", "l1", "--filter-width", "0"]) == 0
    assert json.loads(out.read_text())["norm"] == "l1"
    assert "\nThese norms are l2, which is right for SGD. Adam wants l1: record them with Gr" in capsys.readouterr().out


@pytest.mark.parametrize(
    "content",
    [
        "{",
        "[]",
        '{"norm": "l2"}',
        '{"norm": "l3", "gradient_norms": [1, 2]}',
        '{"norm": "l2", "gradient_norms": ["1"]}',
    ],
)
def test_a_file_that_holds_no_norms_is_named(tmp_path, capsys, content):
    (tmp_path / "gradient_norms.json").write_text(content)
    assert main(["refine", str(tmp_path)]) == 2
    assert "gradient_norms.json" in capsys.readouterr().err


def test_a_run_without_norms_says_how_to_record_them(tmp_path, capsys):
    assert main(["refine", str(tmp_path)]) == 2
    assert "--trainer.callbacks+=GradientNormRecorder" in capsys.readouterr().err
    with pytest.raises(NoNorms, match="no such folder"):
        read_norms(tmp_path / "nowhere")
    record(tmp_path, [1.0])
    assert main(["refine", str(tmp_path)]) == 2
    assert "needs two or more norms above 0" in capsys.readouterr().err
    record(tmp_path, [1.0, 2.0])
    assert main(["refine", str(tmp_path), "--out", str(tmp_path / "no" / "such" / "x.json")]) == 2
    assert "cannot write" in capsys.readouterr().err
