# SPDX-License-Identifier: Apache-2.0
"""The tables of `lightning-stable bench overhead`, on runs that are small, and on times that are made up."""

import json

import pytest
import torch

from lightning_stable.bench import overhead
from lightning_stable.bench.overhead import BARE, ENTROPY, GUARD, SNAPSHOTS, charlm_rows, main, tiny_rows
from lightning_stable.testbeds import CharLM, PythonTextDataModule


@pytest.fixture
def small(monkeypatch):
    def charlm(callbacks):
        data = PythonTextDataModule(context=8, batch_size=2)
        return CharLM(n_layer=1, n_head=1, d_model=8, context=8), data.train_dataloader(), callbacks()

    monkeypatch.setattr(overhead, "_charlm", charlm)
    monkeypatch.setattr(overhead, "_TINY_ROUNDS", 1)


def test_both_tables_are_printed_and_written(small, tmp_path, capsys):
    threads = torch.get_num_threads()
    assert main(["--rounds", "1", "--threads", "2", "--json", str(tmp_path / "out.json")]) == 0
    assert torch.get_num_threads() == threads
    out, err = capsys.readouterr()
    assert err == ""
    assert out.startswith("Python ")
    assert "2 CPU threads" in out.splitlines()[0]
    assert "┌" not in out  # the guards' own summaries
    for name in (BARE, GUARD, SNAPSHOTS, ENTROPY, "what the snapshots add", "SpikeDetection", "MomentumReset"):
        assert f"  {name}" in out
    content = json.loads((tmp_path / "out.json").read_text())
    machine, charlm, tiny = content.values()
    assert f"torch {torch.__version__}" in machine
    assert [row["name"] for row in charlm][:3] == [BARE, GUARD, SNAPSHOTS]
    assert charlm[1]["bound"] == 1.04
    assert tiny[-1]["bound"] == tiny[1]["ratio"]
    assert [path.name for path in tmp_path.iterdir()] == ["out.json"]


def test_what_exceeds_its_bound_is_said_to_be_over():
    seconds = {BARE: [1.0, 2.0, 4.0], GUARD: [1.03, 2.06, 4.12], SNAPSHOTS: [1.04, 2.1, 4.2], ENTROPY: [1.03, 2.0, 4.2]}
    rows = {row.name.strip(): row for row in charlm_rows(seconds)}
    assert not rows[GUARD].is_over
    assert rows["what the snapshots add"].ratio == pytest.approx(0.02)
    assert not rows["what the snapshots add"].is_over
    assert rows[ENTROPY].ratio == pytest.approx(1.03)
    assert str(rows[ENTROPY]).endswith("<= 1.020  over")
    assert str(rows[GUARD]).endswith("<= 1.040  ok")


def test_the_guard_is_held_against_lightnings_own_detection():
    seconds = {BARE: [1.0, 1.0], "SpikeDetection": [1.4, 1.6], GUARD: [1.6, 1.6]}
    assert [row.is_over for row in tiny_rows(seconds)] == [False, False, True]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--rounds", "0"], "argument --rounds: must be a whole number, at least 1, got 0"),
        (["--threads", "two"], "argument --threads: must be a whole number, at least 1, got two"),
        (["--steps", "5"], "unrecognized arguments: --steps 5"),
    ],
)
def test_wrong_arguments_are_exit_status_2(arguments, message, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert message in capsys.readouterr().err
