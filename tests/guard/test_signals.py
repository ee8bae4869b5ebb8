# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.detectors import Above, LevelShift, MedianDeviation, NonFinite, Verdict
from lightning_stable.guard import Rollback, SkipStep, SpikeGuard
from lightning_stable.guard.signals import GradientReading, Signals
from tests.faulty_runs import Net, make_batches, run


def warm(signals, **readings):
    for _ in range(10):
        signals.accept(readings)


def test_nothing_is_remembered_of_a_step_in_which_one_signal_is_anomalous():
    signals = Signals({"loss": MedianDeviation(warmup=2, min_rise=1.0), "grad_norm": MedianDeviation(warmup=2)})
    warm(signals, loss=2.0, grad_norm=1.0)
    before = signals.state_dict()
    assert signals.judge({"loss": 50.0, "grad_norm": 1.0}).signal == "loss"
    assert signals.state_dict() == before


def test_the_worst_signal_is_named():
    signals = Signals({"loss": MedianDeviation(warmup=2, min_rise=1.0), "grad_norm": MedianDeviation(warmup=2)})
    for value in range(20):
        signals.accept({"loss": 2.0 + 0.01 * value, "grad_norm": 1.0 + 0.01 * value})
    assert signals.judge({"loss": 50.0, "grad_norm": 5.0}).signal == "loss"
    assert signals.judge({"loss": 50.0, "grad_norm": math.nan}).signal == "grad_norm"


@pytest.mark.parametrize("watch", [{}, {"loss": NonFinite()}])
def test_loss_and_gradient_norm_are_always_judged_for_finiteness(watch):
    assert Signals(watch).judge({"loss": 1e30, "grad_norm": 1e30}) is None
    assert Signals(watch).judge({"loss": 1.0, "grad_norm": math.inf}).signal == "grad_norm"


def test_each_optimizer_has_detectors_of_its_own():
    signals = Signals({"grad_norm": MedianDeviation(warmup=2)})
    warm(signals, grad_norm=1.0)
    warm(signals, **{"grad_norm/1": 100.0})
    assert signals.judge({"grad_norm": 100.0}) is not None
    assert signals.judge({"grad_norm/1": 100.0}) is None


def test_the_history_survives_a_state_dict():
    first = Signals({"loss": MedianDeviation(warmup=2)})
    warm(first, loss=1.0)
    second = Signals({"loss": MedianDeviation(warmup=2)})
    second.load_state_dict(first.state_dict())
    assert second.judge({"loss": 2.0}) == first.judge({"loss": 2.0}) is not None


def test_the_median_of_the_accepted_norms_is_typical_of_each_optimizer():
    signals = Signals({})
    assert signals.typical("grad_norm") is None
    for norm in (1.0, 5.0, 3.0, 2.0):
        signals.accept({"grad_norm": norm, "grad_norm/1": 10 * norm, "loss": 0.1})
    assert signals.typical("grad_norm") == 2.5
    assert signals.typical("grad_norm/1") == 25.0
    for _ in range(64):  # as many are remembered
        signals.accept({"grad_norm": 7.0})
    assert signals.typical("grad_norm") == 7.0
    again = Signals({})
    again.load_state_dict(signals.state_dict())
    assert again.typical("grad_norm") == 7.0
    assert again.typical("grad_norm/1") == 25.0


class OnlyFinite(NonFinite):
    """Lets pass what is below 4."""

    def judge(self, value):
        return Verdict(is_anomaly=not value < 4.0, score=value, threshold=4.0)


def test_while_no_norm_is_known_the_largest_that_passes_is_typical():
    signals = Signals({"grad_norm": OnlyFinite()})
    assert signals.typical("grad_norm") == 4.0
    signals.accept({"grad_norm": 1.0})
    assert signals.typical("grad_norm") == 1.0


@pytest.mark.parametrize(
    ("norm", "typical", "is_finite", "is_too_large"),
    [
        (5.0, 2.0, True, True),
        (5.0, 2.0, False, False),
        (5.0, None, True, False),
        (2.0, 2.0, True, False),
        (1.0, 2.0, True, False),
        (5.0, 0.0, True, False),
    ],
)
def test_gradients_are_shrunk_to_what_is_known_and_never_grown(norm, typical, is_finite, is_too_large):
    assert (
        GradientReading(torch.optim.SGD([torch.zeros(1)], lr=0.1), norm, typical, is_finite).is_too_large
        is is_too_large
    )


def test_the_users_detector_is_not_changed():
    detector = MedianDeviation()
    warm(Signals({"loss": detector}), loss=1.0)
    assert detector.state_dict() == MedianDeviation().state_dict()


def test_something_else_than_a_detector_is_refused():
    with pytest.raises(TypeError, match=r"`SpikeGuard\(watch=...\)`: 'loss' must map to a detector, got 8.0"):
        Signals({"loss": 8.0})


def test_the_largest_loss_of_the_ranks_has_a_history_of_its_own():
    signals = Signals({"loss": MedianDeviation(warmup=2, min_rise=1.0)})
    warm(signals, loss=2.0, largest_loss=5.0)
    assert signals.judge({"loss": 2.0, "largest_loss": 5.0}) is None
    assert signals.judge({"loss": 2.0, "largest_loss": 7.0}).signal == "largest_loss"
    assert signals.judge({"loss": 5.0, "largest_loss": 5.0}).signal == "loss"


def test_the_largest_loss_of_the_ranks_can_have_a_detector_of_its_own():
    signals = Signals({"loss": MedianDeviation(warmup=2, min_rise=1.0), "largest_loss": NonFinite()})
    warm(signals, loss=2.0, largest_loss=5.0)
    assert signals.logged_keys == []
    assert signals.judge({"largest_loss": 700.0}) is None


def test_only_who_called_it_an_anomaly_is_told_so():
    signals = Signals({"loss": MedianDeviation(warmup=2, min_rise=1.0), "grad_norm": MedianDeviation(warmup=2)})
    warm(signals, loss=2.0, grad_norm=1.0)
    signals.reject({"loss": 50.0, "grad_norm": 1.0})
    states = signals.state_dict()["detectors"]
    assert states["loss"]["rejected"]["values"] == [50.0]
    assert states["grad_norm"]["rejected"]["values"] == []
    assert states["grad_norm"]["values"] == [1.0] * 10


def test_a_level_that_stays_is_a_spike_no_longer():
    signals = Signals({"loss": MedianDeviation(warmup=2, min_rise=1.0)})
    warm(signals, loss=2.0)
    for _ in range(16):
        assert signals.judge({"loss": 50.0}) is not None
        signals.reject({"loss": 50.0})
    assert signals.judge({"loss": 50.0}) is None


def test_a_healthy_step_is_asked_of_warnings_and_judged_without_them():
    signals = Signals({}, {"loss": Above(2.0), "far": Above(1.0)})
    assert signals.logged_keys == ["far"]
    assert signals.judge({"loss": 3.0, "far": math.nan}) is None
    alarms = signals.accept({"loss": 3.0, "far": math.nan, "grad_norm": 1.0})
    assert [(one.signal, one.detector) for one in alarms] == [("loss", "Above"), ("far", "Above")]
    assert signals.accept({"loss": 4.0}) == []
    assert signals.accept({"loss": 1.0, "loss/1": 5.0, "largest_loss": 9.0})[0].signal == "loss/1"
    assert [one.signal for one in signals.accept({"loss": 3.0})] == ["loss"]
    again = Signals({}, {"loss": Above(2.0), "far": Above(1.0)})
    again.load_state_dict(signals.state_dict())
    assert again.state_dict() == signals.state_dict()
    assert again.accept({"loss": 3.0}) == []  # the alarm lasts


def test_a_key_that_only_begins_like_a_watched_one_is_another():
    signals = Signals({"a": Above(1.0)}, {"a": Above(1.0), "a/7": Above(100.0)})
    assert signals.judge({"a/7": 50.0}) is None
    assert signals.judge({"a/8": 50.0}) is None
    assert signals.accept({"a/7": 50.0}) == []


def test_a_detector_of_another_kind_begins_anew_and_says_so():
    first, second = Signals({"loss": MedianDeviation(warmup=2)}), Signals({"loss": LevelShift()})
    warm(first, loss=1.0)
    with pytest.warns(UserWarning, match=r"'loss': LevelShift\(...\)}\)` was a `MedianDeviation` when the checkpoint"):
        second.load_state_dict(first.state_dict())
    assert second.state_dict()["detectors"]["loss"] == LevelShift().state_dict()


class LogsNowAndThen(Net):
    """Says how large a batch is if its first number is above 0."""

    def training_step(self, batch, batch_idx):
        if not batch["x"][0, 0] <= 0:
            self.log("size", batch["x"].square().mean())
        return super().training_step(batch, batch_idx)


@pytest.mark.parametrize("response", [SkipStep(times=9), Rollback("replay", times=9)], ids=["skip", "replay"])
def test_what_was_read_before_a_step_that_is_undone_is_not_read_again_after_it(response):
    def history(batches):
        watch = {"loss": NonFinite(), "size": MedianDeviation(threshold=1e6)}
        guarded = SpikeGuard(watch=watch, ladder=[response], snapshot_every=4, warn={})
        run(batches, [guarded], model=LogsNowAndThen, epochs=1)
        return guarded._signals.state_dict()["detectors"]["size"]

    batches = make_batches(24)
    is_logged = [float(batch["x"][0, 0]) > 0 for batch in batches]
    bad = next(index for index in range(5, 20) if not is_logged[index] and not is_logged[index + 1])
    spoilt = [{**batch, "x": batch["x"] * torch.nan} if index == bad else batch for index, batch in enumerate(batches)]
    assert history(spoilt) == history(batches[:bad] + batches[bad + 1 :])
