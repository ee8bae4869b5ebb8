# SPDX-License-Identifier: Apache-2.0
import json

import pytest

from lightning_stable.bench import labelled_curves
from lightning_stable.bench.detectors import DEFAULT_PAIR, POINT_RULES, SLOW_RULES, main


@pytest.fixture(autouse=True)
def short_curves(monkeypatch):
    monkeypatch.setattr(labelled_curves, "LENGTH", 4000)


def test_it_prints_a_table_of_every_detector_and_writes_the_numbers(tmp_path, capsys):
    assert main(["--curves", "9", "--json", str(tmp_path / "numbers.json")]) == 0
    printed = capsys.readouterr().out
    assert "generated: 9 curves of 0.04 million steps" in printed
    for name in (*POINT_RULES, *SLOW_RULES, DEFAULT_PAIR):
        assert f"\n{name} " in printed
    numbers = json.loads((tmp_path / "numbers.json").read_text())
    assert numbers["MedianDeviation"]["generated"]["found_detonations"] == 1


def test_the_detectors_themselves_learn_nothing(capsys):
    states = [detector.state_dict() for detector in POINT_RULES.values()]
    main(["--curves", "1"])
    assert [detector.state_dict() for detector in POINT_RULES.values()] == states


def test_a_folder_without_labels_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit, match="2"):
        main(["--data", str(tmp_path)])
    assert "there is no labels.json in" in capsys.readouterr().err
