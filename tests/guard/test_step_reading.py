# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.guard.step_reading import StepReading, _combined, gradient_norm


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


def row(share, loss=None, **logged):
    keys = [logged.get("a"), logged.get("b")]
    numbers = [number for value in keys for number in ((0.0, 0.0) if value is None else (1.0, value))]
    return [share, 0.0 if loss is None else 1.0, loss or 0.0, *numbers]


def combined(*rows, factor=1.0, unscale=1.0, scale=1.0):
    return _combined(list(rows), ["a", "b"], factor, unscale, scale)


def test_ranks_are_combined_to_one_reading():
    reading = combined(row(9.0, 2.0, a=1.0), row(16.0, 4.0, a=3.0, b=7.0), factor=0.5, unscale=10.0, scale=10.0)
    assert reading == StepReading(loss=1.5, norm=0.5, scale=10.0, largest_loss=2.0, logged={"a": 2.0, "b": 7.0}, rank=1)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_one_rank_that_is_not_finite_is_enough_and_is_named(bad):
    reading = combined(row(1.0, 9.0), row(1.0, bad), row(1.0, 3.0))
    assert not reading.is_finite
    assert reading.rank == 1
    assert not math.isfinite(reading.largest_loss)


def test_a_rank_without_a_loss_does_not_count():
    assert combined(row(1.0), row(1.0, 3.0)).loss == 3.0
    assert combined(row(1.0), row(1.0)).loss is None
    assert combined(row(1.0), row(1.0)).rank is None


def test_an_overflow_is_the_scalers_only_while_the_loss_is_finite():
    assert StepReading(loss=1.0, norm=math.inf, scale=2.0).is_overflow
    assert not StepReading(loss=math.nan, norm=math.inf, scale=2.0).is_overflow
    assert not StepReading(loss=1.0, norm=math.inf, scale=1.0).is_overflow
    assert not StepReading(loss=1.0, norm=3.0, scale=2.0).is_overflow
