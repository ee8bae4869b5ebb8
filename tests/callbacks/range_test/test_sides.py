# SPDX-License-Identifier: Apache-2.0
"""All sides start alike and see the same batches, and what is recommended of them follows the rule."""

import pytest
import torch

from lightning_stable.callbacks import LRRangeTest
from lightning_stable.callbacks.range_test.curve import RangeCurve
from lightning_stable.callbacks.range_test.sides import best_of
from tests.callbacks.range_test.ranged_runs import DATA, SHORT, Net, Quadratic, fit, result_of


def curve(largest, lowest):
    return RangeCurve([0.1], [lowest], [lowest], largest, True, None)


@pytest.mark.parametrize(
    ("curves", "best"),
    [
        ({}, None),
        ({0.9: curve(None, 1.0)}, None),
        ({0.8: curve(1.0, 2.0), 0.9: curve(2.0, 3.0)}, 0.9),
        ({0.8: curve(1.0, 2.0), 0.9: curve(1.0, 1.0), 0.95: curve(None, 0.1)}, 0.9),
    ],
)
def test_the_largest_rate_is_recommended_and_then_the_lowest_loss(curves, best):
    assert best_of(curves) == best


def test_every_side_and_every_try_sees_the_same_batches_with_the_same_random_numbers():
    seen = []

    class Watched(Net):
        def training_step(self, batch, batch_idx):
            seen.append((batch_idx, batch.sum().item(), torch.rand(1).item(), self.net[0].weight.sum().item()))
            return super().training_step(batch, batch_idx)

    callback = LRRangeTest(momentum=[0.5], weight_decay=[0.1], **SHORT)
    fit(Watched(), callback)
    tried = seen[: callback.result.steps]
    starts = [index for index, one in enumerate(tried) if one[0] == 0]
    assert len(starts) > 10
    of_first = {one[0]: one for one in tried[: starts[1]]}
    assert len({tried[start] for start in starts}) == 1  # the same weights, too
    for batch_idx, total, number, _ in tried:
        if batch_idx in of_first:
            assert (total, number) == of_first[batch_idx][1:3]
    assert seen[callback.result.steps][:2] == (0, DATA[:8].sum().item())


def test_two_tests_find_the_same():
    first, second = LRRangeTest(momentum=[0.5], **SHORT), LRRangeTest(momentum=[0.5], **SHORT)
    fit(Net(), first)
    fit(Net(), second)
    assert first.result == second.result


# Momentum and weight decay


def test_momentum_moves_the_edge_and_the_value_with_the_largest_rate_is_recommended():
    eigenvalues = torch.logspace(-2, 0, 5, dtype=torch.float64)
    result = result_of(Quadratic(eigenvalues, torch.ones(5, dtype=torch.float64)), momentum=[0.0, 0.4])
    plain, with_momentum = result.of_momentum[0.0], result.of_momentum[0.4]
    assert plain.largest == result.max_lr
    assert plain.losses == result.losses
    assert 2.0 < with_momentum.largest <= 2 * 1.4 * 1.25  # 2 (1 + beta) / lambda_max in the long run
    assert result.momentum == 0.4


def test_weight_decay_that_is_too_strong_is_not_recommended():
    result = result_of(Net(weight_decay=1e-4), weight_decay=[0.0, 1e-4, 300.0], **SHORT)
    assert result.of_weight_decay[1e-4].losses == result.losses
    assert result.weight_decay in (0.0, 1e-4)
    assert result.of_weight_decay[300.0].largest < result.of_weight_decay[0.0].largest
    assert result.momentum is None


def test_the_first_beta_is_the_momentum_of_adam():
    result = result_of(Net(torch.optim.AdamW), momentum=[0.9, 0.5], **SHORT)
    assert result.of_momentum[0.9].losses == result.losses
    assert result.of_momentum[0.5].losses != result.losses


@pytest.mark.parametrize("arguments", [{"momentum": [0.9]}, {"weight_decay": [0.1]}])
def test_an_optimizer_without_them_is_refused(arguments):
    class Bare(torch.optim.Optimizer):
        def __init__(self, params, lr):
            super().__init__(params, {"lr": lr})

        def step(self, closure=None):
            closure()

    with pytest.raises(ValueError, match=r"`LRRangeTest\((momentum|weight_decay)=\.\.\.\)` needs groups with"):
        result_of(Net(Bare), **SHORT, **arguments)
