# SPDX-License-Identifier: Apache-2.0
"""Grids, running means, divergence, harm, the edge and the steepest descent, each against a plain restatement."""

import itertools
import math

import pytest

from lightning_stable.callbacks.range_test.curve import (
    Divergence,
    HeldRate,
    RangeCurve,
    RunningMean,
    find_edge,
    grid_of,
    hold_steps,
    steepest_of,
)


def test_grids_have_both_ends_and_even_spacing():
    rates = grid_of(1e-7, 10.0, 100, "exponential")
    assert (rates[0], rates[-1], len(rates)) == (1e-7, 10.0, 100)
    assert all(b / a == pytest.approx(1e8 ** (1 / 99)) for a, b in itertools.pairwise(rates))
    rates = grid_of(0.1, 0.7, 4, "linear")
    assert rates == pytest.approx([0.1, 0.3, 0.5, 0.7])


def test_the_running_mean_has_no_bias():
    mean, values = RunningMean(0.7), [3.0, -1.0, 4.0, 1.0, 5.0]
    found = [mean(value) for value in values]
    for t in range(1, 6):
        weights = [0.7 ** (t - 1 - i) for i in range(t)]
        expected = sum(w * v for w, v in zip(weights, values, strict=False)) / sum(weights)
        assert found[t - 1] == pytest.approx(expected, rel=1e-14)


@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
def test_what_is_not_finite_is_divergence_and_harm(bad):
    assert Divergence(4.0, 0.9)(bad)
    assert HeldRate([1.0], 4.0, 0.9)(bad)


@pytest.mark.parametrize(
    ("losses", "diverges_at"),
    [
        ([1.0, 0.5, 1.9, 2.1], 3),  # 4 * 0.5
        ([1.0, 1e-6, 0.039, 0.041], 3),  # a hundredth of the first loss counts as low enough
        ([-1.0, -2.0, 3.9, 4.1], 3),  # -2 + 3 * 2
        ([1.0, -1.0, 4.9, 5.1], 3),  # -1 + 3 * (1 - -1)
        ([0.0, 0.0, 0.0], None),
        ([0.0, 1e-9], 1),
        ([5.0] * 50, None),
    ],
)
def test_the_limit_of_a_sweep(losses, diverges_at):
    has_diverged = Divergence(4.0, 0.0)
    found = [has_diverged(loss) for loss in losses]
    assert found == [index == diverges_at for index in range(len(losses))]


def test_smoothing_looks_over_one_bad_batch():
    has_diverged = Divergence(4.0, 0.9)
    assert not any(has_diverged(loss) for loss in [1.0] * 20 + [20.0] + [1.0] * 20)


@pytest.mark.parametrize("ratio", [1.01, 1.2, 2.0, 10.0])
def test_steps_are_enough_for_a_millionth_of_the_loss_to_grow_to_all_of_it(ratio):
    steps = hold_steps([1.0, ratio], 1)
    assert steps == 8 or 1e-6 * (2 * ratio - 1) ** (2 * steps) >= 1 > 1e-6 * (2 * ratio - 1) ** (2 * (steps - 1))
    assert hold_steps([1.0, ratio], 0) == steps


@pytest.mark.parametrize(
    ("losses", "unlearned", "held"),
    [
        ([1.0, 0.9, 0.8, 0.7], [1.0, 1.0, 1.0, 1.0], True),
        ([1.0, 0.9, 0.8, 1.01], [1.0, 1.0, 1.0, 1.0], True),
        ([1.0, 0.9, 0.8, 1.03], [1.0, 1.0, 1.0, 1.0], False),
        ([1.0, 3.0, 0.8, 2.0], [1.0, 3.0, 1.0, 2.2], True),  # it is the batches that are hard
        ([-1.0, -1.0, -1.0, -0.9], [-1.0, -1.0, -1.0, -1.0], False),
        ([-1.0, -1.5, -2.0, -2.5], [-1.0, -1.0, -1.0, -1.0], True),
        ([0.0, 0.0, 0.0, 0.0], [0.0, 0.0, 0.0, 0.0], True),
    ],
)
def test_a_rate_holds_if_it_ends_no_worse_than_without_learning(losses, unlearned, held):
    harms = HeldRate(unlearned, 4.0, 0.0)
    assert not any(harms(loss) for loss in losses)
    assert harms.held() is held


def test_a_rate_does_harm_at_once_when_it_explodes():
    harms = HeldRate([1.0, -2.0, 1.0], 4.0, 0.0)
    assert [harms(loss) for loss in (3.9, 3.9, 4.1)] == [False, False, True]


@pytest.mark.parametrize("count", [0, 1, 2, 3, 100])
def test_halving_finds_every_edge_in_few_tries(count):
    for edge in range(-1, count):
        tried = []

        def holds(index, edge=edge, tried=tried):
            tried.append(index)
            return index <= edge

        assert find_edge(count, holds) == (edge if edge >= 0 else None)
        assert len(set(tried)) == len(tried) <= count.bit_length()


def test_the_steepest_descent_is_where_it_is_in_spite_of_smoothing():
    rates = grid_of(1e-4, 1.0, 80, "exponential")
    losses = [2 - math.tanh(3 * math.log10(rate / 1e-2)) for rate in rates]
    for smoothing in (0.0, 0.8, 0.9):
        for exploding in ([], [1e6], [math.nan]):
            data = losses[: 80 - len(exploding)] + exploding
            assert steepest_of(rates, data, smoothing, logarithmic=True) == pytest.approx(1e-2, rel=0.3)


@pytest.mark.parametrize("losses", [[], [1.0], [1.0, 0.5], [1.0, 2.0, 3.0, 4.0], [math.nan] * 5, [1.0] * 5])
def test_where_nothing_falls_nothing_is_steepest(losses):
    assert steepest_of([1.0, 2.0, 3.0, 4.0, 5.0], losses, 0.0, logarithmic=False) is None


def test_the_lowest_loss_is_a_finite_one():
    assert RangeCurve([1.0] * 3, [1.0] * 3, [2.0, math.nan, 3.0], None, True, None).lowest == 2.0
    assert math.isnan(RangeCurve([], [], [], None, True, None).lowest)
