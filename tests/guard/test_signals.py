# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.detectors import MedianDeviation, NonFinite
from lightning_stable.guard.signals import Signals, gradient_norm


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


def test_the_users_detector_is_not_changed():
    detector = MedianDeviation()
    warm(Signals({"loss": detector}), loss=1.0)
    assert detector.state_dict() == MedianDeviation().state_dict()


def test_something_else_than_a_detector_is_refused():
    with pytest.raises(TypeError, match=r"`SpikeGuard\(watch=...\)`: 'loss' must map to a detector, got 8.0"):
        Signals({"loss": 8.0})


def test_the_gradient_norm_is_that_of_all_gradients_together():
    parameters = [
        torch.nn.Parameter(torch.zeros(3, 2)),
        torch.nn.Parameter(torch.zeros(5)),
        torch.nn.Parameter(torch.ones(1)),
    ]
    optimizer = torch.optim.SGD([{"params": parameters[:1]}, {"params": parameters[1:]}], lr=0.1)
    assert gradient_norm(optimizer).item() == 0.0  # no gradients at all
    parameters[0].grad = torch.randn(2, 3, generator=torch.Generator().manual_seed(0)).T  # not contiguous
    parameters[1].grad = torch.arange(5.0)
    flat = torch.cat([parameters[0].grad.double().flatten(), parameters[1].grad.double()])
    assert gradient_norm(optimizer).item() == pytest.approx(math.sqrt((flat**2).sum().item()), rel=1e-6)
    parameters[2].grad = torch.tensor([math.nan])
    assert math.isnan(gradient_norm(optimizer).item())
