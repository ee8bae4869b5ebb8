# SPDX-License-Identifier: Apache-2.0
"""`lightning-stable detect` on what a run of a recipe has logged."""

import re

import pytest

from lightning_stable.cli import main
from tests.small_fit import LIGHTNING_CLI_WARNS, small_fit

pytestmark = pytest.mark.filterwarnings(LIGHTNING_CLI_WARNS)


@pytest.fixture(autouse=True)
def environment(monkeypatch, tmp_path):
    """`seed_everything` leaves variables behind; and nothing may be written but to `tmp_path`."""
    for name in ("PL_GLOBAL_SEED", "PL_SEED_WORKERS"):
        monkeypatch.setenv(name, "0")
    monkeypatch.chdir(tmp_path)


def test_detectors_judge_what_a_run_logged(tmp_path, capsys):
    bad = "--data.corrupt=[{kind: nan_embedding, batches: [2]}]"
    assert small_fit(tmp_path, bad, "--lr_scheduler.warmup_steps=1", recipe="charlm_stable", steps=5) == 0
    folder = tmp_path / "run" / "version_0"
    capsys.readouterr()
    assert main(["detect", "--values", str(folder), "--column", "stability/loss", "--detector", "NonFinite"]) == 0
    out = capsys.readouterr().out
    assert "stability/loss of run/version_0: 6 values, steps 0 to 5, " in out
    assert re.search(r"\nNonFinite\(\) +1 +1 +166667 +1\n", out)
    assert (tmp_path / "detect.png").is_file()
    assert main(["detect", "--values", str(folder), "--column", "no_such_tag"]) == 2
    assert "there is no tag 'no_such_tag'. There are epoch, " in capsys.readouterr().err
