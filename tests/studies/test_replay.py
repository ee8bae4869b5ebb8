# SPDX-License-Identifier: Apache-2.0
import itertools

import numpy as np
import pytest

from lightning_stable.detectors import Above, LevelShift, NonFinite
from lightning_stable.studies.curve import Curve, counted
from lightning_stable.studies.detector_choice import choose_detector, known_detectors
from lightning_stable.studies.replay import Streak, replay, scan_in_parts


def curve_of(values):
    return Curve("loss", counted(len(values)), np.array(values, dtype=np.float64))


def noisy(length, seed=0):
    """A falling loss with spikes, NaN and a slow rise at the end."""
    generator = np.random.default_rng(seed)
    values = 2.0 + 2.0 * np.exp(-counted(length) / 500) + generator.normal(0, 0.05, length)
    values[generator.integers(100, length, 20)] += 3.0
    values[generator.integers(100, length, 5)] = np.nan
    values[-length // 3 :] += 0.5
    return curve_of(values)


@pytest.mark.parametrize("name", known_detectors())
def test_a_replay_says_what_updates_one_by_one_say(name):
    curve, choice = noisy(6000), choose_detector(name)
    found = replay(choice.label, choice.build(), curve)
    detector = choice.build()
    verdicts = [detector.update(value) for value in curve.values.tolist()]
    assert found.scan.is_anomaly.tolist() == [verdict.is_anomaly for verdict in verdicts]
    assert np.array_equal(found.scan.score, [verdict.score for verdict in verdicts])
    assert np.array_equal(found.scan.threshold, [verdict.threshold for verdict in verdicts])


def test_parts_grow_and_cover_the_curve():
    lengths = [len(scan.score) for _, scan in scan_in_parts(NonFinite(), counted(10_000))]
    assert lengths == [1024, 2048, 4096, 2832]
    assert not list(scan_in_parts(NonFinite(), counted(0)))


def test_progress_is_told_up_to_the_end():
    told = []
    replay("Above", Above(1.0), curve_of(np.zeros(5000)), lambda what, share: told.append((what, share)))
    assert told[-1] == ("Above: judging", 1.0)
    assert [share for _, share in told] == sorted(share for _, share in told)


def test_alarms_that_follow_each_other_are_one_streak():
    found = replay("Above", Above(2.0), curve_of([3, 1, 3, 3, np.nan, 1, 3]))
    assert found.streaks == [Streak(0, 1), Streak(2, 3), Streak(6, 1)]
    assert found.per_million == pytest.approx(5 / 7 * 1e6)
    assert replay("Above", Above(9.0), curve_of([1.0])).streaks == []


def test_a_curve_shorter_than_the_warm_up_has_no_limit_whatever_is_not_finite():
    assert replay("", choose_detector("MedianDeviation").build(), curve_of([2.0] * 20)).had_no_limit
    assert not replay("", choose_detector("MedianDeviation").build(), noisy(200)).had_no_limit
    assert replay("", LevelShift(), curve_of([2.0] * 20 + [np.nan])).had_no_limit
    assert not replay("", Above(2.0), curve_of([np.nan])).had_no_limit


def test_the_level_and_its_limit_are_those_that_level_shift_goes_by():
    curve, detector = noisy(6000), LevelShift(block=50, blocks=10)
    found = replay("LevelShift", detector, curve)
    assert found.judges_level
    finite = [value for value in curve.values if np.isfinite(value)]
    means = [float(np.mean(finite[start : start + 50])) for start in range(0, len(finite) - 49, 50)]
    levels = [float(np.mean(means[end - 10 : end])) for end in range(10, len(means) + 1)]
    assert found.judged[np.isfinite(found.judged)] == pytest.approx(levels)
    shifts = [index for index in found.alarms if np.isfinite(curve.values[index])]
    assert len(shifts) == 1
    best = min(levels[: levels.index(pytest.approx(found.judged[shifts[0]]))])
    assert found.limit[shifts[0]] == pytest.approx(best + max(0.1, 4.0 * detector.state_dict()["spread"]))
    assert found.limit[shifts[0] - 1] == np.inf
    healthy = np.isfinite(found.limit) & ~found.scan.is_anomaly
    assert (found.judged[healthy] <= found.limit[healthy]).all()


def test_an_absurd_level_leaves_its_limit_readable():
    values = np.full(400, 2.0) + np.tile([0.0, 0.01], 200)
    values[300] = 1e30
    found = replay("LevelShift", LevelShift(block=10, blocks=5), curve_of(values))
    (alarm,) = found.alarms
    assert found.judged[alarm] > 1e27
    assert found.limit[alarm] == pytest.approx(2.105, abs=1e-3)


def test_numbers_too_large_to_be_added_raise_no_warning():
    values = list(itertools.repeat(1.7e308, 300))
    found = replay("LevelShift", LevelShift(block=10, blocks=5), curve_of(values))
    assert len(found.scan.score) == 300
