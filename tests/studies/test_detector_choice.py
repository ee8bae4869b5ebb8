# SPDX-License-Identifier: Apache-2.0
import sys

import pytest

from lightning_stable.detectors import AnyOf, Consecutive, Detector, LevelShift, MedianDeviation, ZScore
from lightning_stable.studies.detector_choice import WrongDetector, choose_detector, known_detectors


@pytest.mark.parametrize("name", known_detectors())
def test_every_detector_is_known_by_its_short_name(name):
    choice = choose_detector(name)
    assert choice.label == f"{name}()"
    assert type(choice.build()).__name__ == name
    assert choose_detector(choice.label) == choice


@pytest.mark.parametrize(
    "text",
    [
        "LevelShift(min_rise=0.2, blocks=10)",
        " LevelShift( blocks = 10, min_rise=0.2 ) ",
        "lightning_stable.detectors.LevelShift(min_rise=0.2, blocks=10)",
        "{class_path: LevelShift, init_args: {min_rise: 0.2, blocks: 10}}",
        '{"class_path": "lightning_stable.detectors.LevelShift", "init_args": {"min_rise": 0.2, "blocks": 10}}',
    ],
)
def test_a_call_yaml_and_json_say_the_same(text):
    choice = choose_detector(text)
    detector = choice.build()
    assert isinstance(detector, LevelShift)
    assert (detector.min_rise, detector.blocks, detector.block) == (0.2, 10, 100)
    assert choice.label == "LevelShift(blocks=10, min_rise=0.2)"


def test_detectors_are_nested():
    choice = choose_detector("AnyOf(detectors=[ZScore(window=64), Consecutive(detector=LevelShift(), times=2)])")
    detector = choice.build()
    assert isinstance(detector, AnyOf)
    first, second = detector.detectors
    assert isinstance(first, ZScore)
    assert first.window == 64
    assert isinstance(second, Consecutive)
    assert isinstance(second.detector, LevelShift)
    assert choice.label == "AnyOf(detectors=[ZScore(window=64), Consecutive(detector=LevelShift(), times=2)])"
    assert choose_detector(choice.label) == choice


def test_a_detector_of_ones_own_is_found_by_its_import_path(tmp_path, monkeypatch):
    source = "from lightning_stable.detectors import Above\nclass Mine(Above):\n    pass\n"
    (tmp_path / "my_detectors.py").write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "my_detectors", raising=False)
    choice = choose_detector("my_detectors.Mine(limit=3)")
    assert choice.label == "my_detectors.Mine(limit=3.0)"
    assert type(choice.build()).__name__ == "Mine"


def test_each_build_has_seen_nothing_and_a_change_leaves_the_choice_alone():
    choice = choose_detector("MedianDeviation")
    one, other = choice.build(), choice.build()
    one.update(1.0)
    assert other.state_dict() == choice.build().state_dict() != one.state_dict()
    changed = choice.changed("threshold", 5.5)
    assert changed.label == "MedianDeviation(threshold=5.5)"
    detector = changed.build()
    assert isinstance(detector, MedianDeviation)
    assert detector.threshold == 5.5
    assert choice.arguments["threshold"] == 16.0


NAMES = ", ".join(known_detectors())


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("ZScor", f"there is no detector 'ZScor'; did you mean ZScore? They are {NAMES}."),
        ("Zcore(window=3)", f"there is no detector 'Zcore'; did you mean ZScore? They are {NAMES}."),
        ("Consecutive(detector=Nothing())", f"there is no detector 'Nothing'; they are {NAMES}."),
        ("no.such.Thing", f"there is no detector 'no.such.Thing'; they are {NAMES}."),
        ("Detector", f"there is no detector 'Detector'; they are {NAMES}."),
        ("Scan", f"there is no detector 'Scan'; they are {NAMES}."),
        ("", f"there is no detector ''; they are {NAMES}."),
        ("[ZScore]", f"there is no detector '[ZScore]'; did you mean ZScore? They are {NAMES}."),
        ("42", f"there is no detector '42'; they are {NAMES}."),
        ("ZScore(windw=3)", "`ZScore` has no argument 'windw'; it takes window, threshold, warmup, min_rise, "),
        ("ZScore(window=1)", "`ZScore(window=...)` must be at least 2, got 1."),
        ("Consecutive(detector=ZScore(window=1))", "`ZScore(window=...)` must be at least 2, got 1."),
        ("ZScore(window='x')", "ZScore(window='x'): --detector.window must be int, got 'x'."),
        ("ZScore(3)", "`ZScore(...)` takes its arguments by name, as in 'LevelShift(min_rise=0.2)'."),
        ("ZScore(**{})", "`ZScore(...)` takes its arguments by name, as in 'LevelShift(min_rise=0.2)'."),
        ("ZScore(", "'ZScore(' is no call such as 'LevelShift(min_rise=0.2)'."),
        ("ZScore(window=1 + x)", "'ZScore(window=1 + x)' is no call such as 'LevelShift(min_rise=0.2)'."),
        ("LevelShift() or ZScore()", "'LevelShift() or ZScore()' is no call such as 'LevelShift(min_rise=0.2)'."),
    ],
)
def test_what_is_no_detector_is_refused_in_one_line(text, message):
    with pytest.raises(WrongDetector) as refusal:
        choose_detector(text)
    assert str(refusal.value).startswith(message)
    assert "\n" not in str(refusal.value)


@pytest.mark.filterwarnings("ignore::jsonargparse._deprecated.JsonargparseDeprecationWarning")  # its own list of paths
@pytest.mark.parametrize("text", ["ZScore(window=__import__('os').mkdir('ran'))", "os.mkdir(path='ran')", "os.mkdir"])
def test_nothing_is_executed_but_detectors(text, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(WrongDetector):
        choose_detector(text)
    assert not list(tmp_path.iterdir())


def test_known_detectors_are_those_of_the_room():
    from lightning_stable import detectors

    assert all(issubclass(getattr(detectors, name), Detector) for name in known_detectors())
    assert "Detector" not in known_detectors()
