# SPDX-License-Identifier: Apache-2.0
"""What every detector owes, asked of each one the room exports."""

import inspect
import pickle
import random

import jsonargparse
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
