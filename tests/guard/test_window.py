# SPDX-License-Identifier: Apache-2.0
"""The step that is under way."""

from lightning_stable.detectors import Verdict
from lightning_stable.guard import ClipStep, SkipStep
from lightning_stable.guard.signals import Anomaly
from lightning_stable.guard.step_reading import StepReading
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


def test_what_is_not_finite_adds_up_over_the_optimizers_and_is_in_the_incident():
    window = Window(response=SkipStep(), anomaly=Anomaly("loss", 9.0, Verdict(True, 12.0, 3.0)))
    window.count(StepReading(loss=1.0, norm=2.0))
    window.count(StepReading(loss=1.0, norm=float("nan"), non_finite_losses=1, non_finite_gradients={"a": 2, "b": 1}))
    window.count(StepReading(loss=1.0, norm=float("inf"), non_finite_losses=2, non_finite_gradients={"c": 4}))
    assert (window.non_finite_losses, window.non_finite_gradients) == (3, 7)
    assert window.incident(step=7, global_step=6, epoch=1).notes == [
        "3 gradient entries are not finite, in a, b",
        "4 gradient entries are not finite, in c",
    ]


def test_a_warning_says_who_has_raised_it_and_that_nothing_was_done():
    alarm = Anomaly("loss", 9.0, Verdict(is_anomaly=True, score=12.0, threshold=3.0), "LevelShift")
    warning = Window(batches=[4]).warning(alarm, step=7, global_step=6, epoch=1)
    assert warning.is_warning
    assert (warning.response, warning.signal, warning.value, warning.batches) == ("Warning", "loss", 9.0, [4])
    assert (warning.steps_skipped, warning.restored, warning.notes) == (0, [], ["raised by LevelShift"])
