# SPDX-License-Identifier: Apache-2.0
import json

import numpy as np
import pytest

from lightning_stable.bench.labelled_curves import (
    DETONATION,
    LENGTH,
    LEVEL_SHIFT,
    OUTLIER,
    SLOW_DIVERGENCE,
    Curve,
    Event,
    generate_curves,
    read_curves,
)


@pytest.fixture(scope="module")
def curves():
    return {curve.name: curve for curve in generate_curves(9, seed=3)}


def only(curve, kind):
    assert {event.kind for event in curve.events} == {kind}
    return curve.events


def around(curve, index, width=200):
    return np.median(curve.values[index - width : index]), np.median(curve.values[index : index + width])


def test_there_is_one_of_each_kind_and_half_of_them_are_healthy(curves):
    assert len(curves) == 9
    assert sum(not curve.events for curve in curves.values()) == 5
    assert all(len(curve.values) == LENGTH and np.isfinite(curve.values).all() for curve in curves.values())


def test_the_labels_stand_where_it_happened(curves):
    (event,) = only(curves[DETONATION], DETONATION)
    before, after = around(curves[DETONATION], event.start, width=5)
    assert after - before > 0.5
    (event,) = only(curves[LEVEL_SHIFT], LEVEL_SHIFT)
    before, after = around(curves[LEVEL_SHIFT], event.start)
    assert 0.08 < after - before < 0.52
    assert np.median(curves[LEVEL_SHIFT].values[-2000:]) - before > -0.2  # it stays, while the loss falls on
    (event,) = only(curves[SLOW_DIVERGENCE], SLOW_DIVERGENCE)
    before, after = around(curves[SLOW_DIVERGENCE], event.start)
    assert abs(after - before) < 0.02
    assert np.mean(curves[SLOW_DIVERGENCE].values[-500:]) - before > 0.1
    events = only(curves["outliers"], OUTLIER)
    assert len(events) == 5
    for event in events:
        assert curves["outliers"].values[event.start] - around(curves["outliers"], event.start)[0] > 0.3
        assert event.end == event.start + 1


def test_the_same_seed_draws_the_same_curves():
    (first,), (again,), (other,) = (list(generate_curves(1, seed)) for seed in (5, 5, 6))
    assert np.array_equal(first.values, again.values)
    assert not np.array_equal(first.values, other.values)


def test_healthy_is_where_nothing_happened():
    curve = Curve("a", np.zeros(6), [Event(OUTLIER, 1, 2), Event(DETONATION, 4, 6)])
    assert curve.healthy.tolist() == [True, False, True, True, False, False]


def write(folder, labels, **curves):
    (folder / "labels.json").write_text(json.dumps(labels))
    for name, steps in curves.items():
        np.savez(folder / f"{name}.npz", step=np.array(steps, dtype=np.int32), loss=np.ones(len(steps), np.float32))


def test_real_curves_are_read_with_their_labels(tmp_path):
    labels = {
        "b": [{"kind": "resume_detonation", "step": 4001}, {"kind": "slow_divergence", "best_step": 3500, "rise": 0.5}],
        "a": [{"kind": "one_step_outlier", "step": 5000}, {"kind": "mild_drift", "best_step": 5500}],
    }
    write(tmp_path, labels, a=range(1, 6001), b=range(3000, 6000))
    first, second = read_curves(tmp_path)
    assert (first.name, second.name) == ("a", "b")
    assert first.events == [
        Event("warm-up", 0, 2999),
        Event(OUTLIER, 4999, 5499),
        Event("mild drift", 5499, 6000),
    ]
    assert second.events[1:] == [Event(DETONATION, 1001, 3000), Event(SLOW_DIVERGENCE, 500, 3000)]


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "names no curve"),
        ({"b": []}, "names b, but there is no b.npz"),
        ({"a": [{"kind": "explosion", "step": 3}]}, "there is no kind of event 'explosion'"),
        ({"a": [{"kind": "mild_drift"}]}, "an event of kind 'mild_drift' has neither a `step` nor a `best_step`"),
    ],
)
def test_labels_that_make_no_sense_are_refused(tmp_path, labels, message):
    write(tmp_path, labels, a=range(10))
    with pytest.raises(ValueError, match=message):
        read_curves(tmp_path)


def test_a_pickle_in_a_curve_is_not_opened(tmp_path):
    write(tmp_path, {"a": []})
    np.savez(tmp_path / "a.npz", step=np.arange(2), loss=np.array([print, print], dtype=object))
    with pytest.raises(ValueError, match="allow_pickle=False"):
        read_curves(tmp_path)
