# SPDX-License-Identifier: Apache-2.0
import numpy as np
import pytest

from lightning_stable.detectors.window_detector import WindowDetector


class Highest(WindowDetector):
    """Whatever is higher than everything in the window."""

    def __init__(self, window=4, warmup=2, delay=0, min_rise=0.0, rebaseline=None):
        super().__init__(window, warmup, delay, min_rise, rebaseline)
        self.rows = []

    def _measure(self, windows):
        self.rows += windows.tolist()
        return windows.max(axis=1), np.zeros(len(windows)), np.ones(len(windows))


@pytest.mark.parametrize(
    ("delay", "compared"),
    [(0, [[1.0, 2.0], [1.0, 2.0, 3.0]]), (1, [[1.0, 2.0], [1.0, 2.0]]), (9, [[1.0, 2.0], [1.0, 2.0]])],
)
def test_the_window_is_what_is_older_than_the_delay(delay, compared):
    detector = Highest(delay=delay, min_rise=10.0)
    for value in (1.0, 2.0, 3.0, 3.0):
        detector.judge(value)
        detector.judge(value)  # nothing has changed, so nothing is measured again
        if value < 3.0 or len(detector.state_dict()["values"]) < 3:
            detector.accept(value)
    assert detector.rows == compared


def test_a_scan_measures_each_window_once_and_up_to_the_first_anomaly():
    detector, values = Highest(), [5.0, 4.0, 3.0, 2.0, 1.0, 4.0, 5.0, 0.0]
    found = detector.scan(values)
    assert found.alarms.tolist() == [6]  # higher than 3, 2, 1 and 4
    assert found.threshold.tolist() == [np.inf, np.inf, 5.0, 5.0, 5.0, 4.0, 4.0, 4.0]


def test_old_states_without_rejections_load():
    detector = Highest()
    detector.load_state_dict({"values": [1.0, 2.0, 3.0]})
    assert detector.judge(3.5).is_anomaly
