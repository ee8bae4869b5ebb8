# SPDX-License-Identifier: Apache-2.0
"""What every detector owes, asked of each one the room exports."""

import inspect
import pickle
import random

import jsonargparse
import numpy as np
import pytest
import torch

import lightning_stable.detectors as room

DETECTORS = [
    member
    for _, member in inspect.getmembers(room, inspect.isclass)
    if issubclass(member, room.Detector) and not inspect.isabstract(member)
]


def stream(length=400):
    rng = random.Random(0)
    return [2.0 + 0.1 * rng.gauss(0, 1) + (30.0 if index % 97 == 96 else 0.0) for index in range(length)]


@pytest.fixture(params=DETECTORS, ids=lambda member: member.__name__)
def kind(request):
    return request.param


def test_it_constructs_without_arguments_and_from_yaml(kind):
    kind()
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--detector", type=room.Detector)
    config = parser.parse_args([f"--detector={kind.__module__}.{kind.__name__}"])
    assert type(parser.instantiate(config).detector) is kind


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
def test_a_non_finite_value_is_an_anomaly_and_leaves_no_trace(kind, value):
    detector = kind()
    for healthy in stream(90):
        detector.update(healthy)
    before = detector.state_dict()
    assert detector.update(value).is_anomaly
    assert detector.state_dict() == before


def test_a_constant_stream_raises_no_alarm(kind):
    detector = kind()
    assert not any(detector.update(1.0).is_anomaly for _ in range(500))


def test_resume_equals_an_uninterrupted_run(kind, tmp_path):
    straight, first, second = kind(), kind(), kind()
    expected = [straight.update(value) for value in stream()]
    for value in stream()[:200]:
        first.update(value)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [second.update(value) for value in stream()[200:]] == expected[200:]


def test_the_state_dict_is_a_copy(kind):
    detector = kind()
    for value in stream(90):
        detector.update(value)
    state = detector.state_dict()
    frozen = pickle.dumps(state)
    for value in stream(90):
        detector.update(value)
    assert pickle.dumps(state) == frozen


def test_it_pickles_and_uses_no_global_randomness(kind):
    python, torch_state = random.getstate(), torch.get_rng_state()
    detector = pickle.loads(pickle.dumps(kind()))
    for value in stream(90):
        detector.update(value)
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), torch_state)


def rough_stream(seed, length=3000):
    """Noise with spikes, runs of spikes, NaN and infinity, changes of level, and equal values."""
    rng = random.Random(seed)
    values = [2.0 + 0.1 * rng.gauss(0, 1) + (9.0 * rng.random() if rng.random() < 0.01 else 0.0) for _ in range(length)]
    for start in range(700, 712):
        values[start] += 5.0
    for index in range(1000, length):
        values[index] += 3.0  # a new level, and then a slow rise
    for index in range(1600, length):
        values[index] += 0.004 * (index - 1600)
    values[1300:1500] = [4.75] * 200
    for index in (3, 500, 501, 1001, 2999):
        values[index] = rng.choice([float("nan"), float("inf"), float("-inf")])
    return values


def verdicts(scan):
    return [
        room.Verdict(*each)
        for each in zip(*(a.tolist() for a in (scan.is_anomaly, scan.score, scan.threshold)), strict=True)
    ]


@pytest.mark.parametrize("seed", range(3))
def test_a_scan_gives_the_verdicts_of_repeated_updates(kind, seed):
    values, one_by_one, at_once, in_parts = rough_stream(seed), kind(), kind(), kind()
    expected = [one_by_one.update(value) for value in values]
    assert verdicts(at_once.scan(values)) == expected
    assert at_once.state_dict() == one_by_one.state_dict()
    parts = [verdicts(in_parts.scan(part)) for part in (values[:10], values[10:10], values[10:777], values[777:])]
    assert [verdict for part in parts for verdict in part] == expected
    assert in_parts.state_dict() == one_by_one.state_dict()


def test_a_scan_takes_arrays_tensors_and_iterators(kind):
    values = stream()
    expected = verdicts(kind().scan(values))
    for other in (np.array(values), torch.tensor(values, dtype=torch.float64), iter(values)):
        assert verdicts(kind().scan(other)) == expected
    assert verdicts(kind().scan([])) == []
    with pytest.raises(ValueError, match=r"`scan\(values=...\)` must have one axis, got 2"):
        kind().scan(np.zeros((2, 2)))


def test_one_nan_blocks_no_later_value(kind):
    with_nan, without = kind(), kind()
    values = [2.0 + 0.1 * random.Random(5).gauss(0, 1) for _ in range(300)]
    expected = [without.update(value) for value in values]
    found = []
    for index, value in enumerate(values):
        if index in (0, 1, 40, 41, 299):
            with_nan.update(float("nan"))
        found.append(with_nan.update(value))
    assert found == expected


def test_a_resume_in_a_row_of_anomalies_equals_an_uninterrupted_run(kind, tmp_path):
    values = rough_stream(7)
    straight, first, second = kind(), kind(), kind()
    expected = [straight.update(value) for value in values]
    for value in values[:706]:
        first.update(value)
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert [second.update(value) for value in values[706:]] == expected[706:]


COMPARES_WITH_HISTORY = [room.MedianDeviation, room.ZScore, room.EMAZScore, room.Ratio]


@pytest.mark.parametrize("member", COMPARES_WITH_HISTORY, ids=lambda member: member.__name__)
def test_an_earlier_spike_hides_no_later_one(member):
    rng = random.Random(1)
    detector = member()
    for _ in range(200):
        detector.update(2.0 + 0.05 * rng.gauss(0, 1))
    assert detector.update(1e6).is_anomaly
    assert detector.update(9.0).is_anomaly
    assert not detector.update(2.0).is_anomaly


@pytest.mark.parametrize("member", COMPARES_WITH_HISTORY, ids=lambda member: member.__name__)
def test_a_new_level_is_called_an_anomaly_for_a_while_only(member):
    rng = random.Random(2)
    detector = member()
    for _ in range(300):
        detector.update(2.0 + 0.02 * rng.gauss(0, 1))
    alarms = [detector.update(20.0 + 0.02 * rng.gauss(0, 1)).is_anomaly for _ in range(500)]
    assert alarms[:16] == [True] * 16
    assert not any(alarms[40:])
    assert detector.update(200.0).is_anomaly


@pytest.mark.parametrize("member", COMPARES_WITH_HISTORY, ids=lambda member: member.__name__)
def test_after_a_constant_stream_noise_below_the_floor_passes(member):
    detector = member(min_rise=0.1)
    for _ in range(300):
        detector.update(0.0)
    assert not any(detector.update(value).is_anomaly for value in (0.05, 0.0, 0.09, -5.0))
    assert detector.update(50.0).is_anomaly


EXTREMES = {
    "float32's largest": [3e38, -3e38, 1.0] * 100,
    "float64's largest": [1.7e308, -1.7e308, 1e200] * 100,
    "float64's smallest": [5e-324, 0.0, -5e-324] * 100,
}


@pytest.mark.parametrize("values", EXTREMES.values(), ids=EXTREMES)
def test_values_too_large_to_be_added_up_are_no_error(kind, values):
    one_by_one, at_once = kind(), kind()
    expected = [one_by_one.update(value) for value in values]
    assert verdicts(at_once.scan(values)) == expected
    assert not any(np.isnan([verdict.score, verdict.threshold]).any() for verdict in expected)
