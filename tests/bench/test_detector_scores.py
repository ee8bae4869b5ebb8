# SPDX-License-Identifier: Apache-2.0
import math

import numpy as np
import pytest

from lightning_stable.bench.detector_scores import Score, score, total
from lightning_stable.bench.labelled_curves import DETONATION, LEVEL_SHIFT, OUTLIER, SLOW_DIVERGENCE, Curve, Event

NOISE = 0.01 * np.random.default_rng(0).normal(size=3000)


def scored(events, *alarms, values=NOISE):
    return score(Curve("a", values, events), np.isin(np.arange(3000), alarms))


@pytest.mark.parametrize(("alarm", "found"), [(1000, 1), (1001, 1), (1002, 0), (999, 0)])
def test_a_detonation_is_found_within_a_step_or_not_at_all(alarm, found):
    result = scored([Event(DETONATION, 1000, 3000)], alarm)
    assert (result.found_detonations, result.detonations) == (found, 1)
    assert result.false_alarms == (alarm == 999)


def test_a_slow_divergence_is_found_by_an_alarm_at_an_ordinary_value():
    values = NOISE.copy()
    values[1500] += 1.0
    event = Event(SLOW_DIVERGENCE, 1000, 3000)
    assert scored([event], 1500, values=values).slow_delays == []  # an outlier, which says nothing of the level
    assert scored([event], 1500, 1700, values=values).slow_delays == [700]
    assert scored([event], 999).slow_delays == []
    assert scored([event], 2999).slow_delays == [1999]


def test_alarms_where_something_is_labelled_are_no_false_ones():
    events = [Event(OUTLIER, 10, 11), Event(LEVEL_SHIFT, 500, 900), Event("warm-up", 0, 5)]
    result = scored(events, 3, 10, 11, 500, 501, 899, 900)
    assert (result.false_alarms, result.called_outliers, result.shift_alarms) == (2, 1, 3)
    assert result.healthy_steps == 3000 - 1 - 400 - 5


def test_scores_add_up():
    both = total([Score(10, 1, slow_divergences=2, slow_delays=[5]), Score(30, 3, slow_divergences=1, slow_delays=[7])])
    assert both == Score(40, 4, slow_divergences=3, slow_delays=[5, 7])
    assert both.false_alarms_per_million == 1e5
    assert both.slow_recall == pytest.approx(2 / 3)
    assert both.median_slow_delay == 6
    assert Score().slow_recall == 1.0
    assert math.isnan(Score().median_slow_delay)
