# SPDX-License-Identifier: Apache-2.0
"""The step that is under way."""

from lightning_stable.detectors import Verdict
from lightning_stable.guard import ClipStep, SkipStep
from lightning_stable.guard.signals import Anomaly
from lightning_stable.guard.window import Window


def test_a_window_tells_of_its_spike():
    window = Window(batches=[4, 5])
    assert not window.is_spike
    window.anomaly = Anomaly("loss", 9.0, Verdict(is_anomaly=True, score=12.0, threshold=3.0))
    for response, is_vetoed in ((ClipStep(), False), (SkipStep(), True)):
        window.response = response
        assert (window.is_spike, window.is_vetoed) == (True, is_vetoed)
        incident = window.incident(step=7, global_step=6, epoch=1, seconds_lost=0.5)
        assert (incident.signal, incident.value, incident.threshold, incident.batches) == ("loss", 9.0, 3.0, [4, 5])
        assert (incident.steps_skipped, incident.seconds_lost) == (int(is_vetoed), 0.5)
        assert incident.time.endswith("+00:00")
