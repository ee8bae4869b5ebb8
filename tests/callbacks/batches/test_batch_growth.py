# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import pytest

from lightning_stable.callbacks.batches.batch_growth import FEWEST_MEASUREMENTS, BatchGrowth
from lightning_stable.functional import GradientNoise


def noise(batch, eta=0.1):
    """What makes the norm test ask for `batch`."""
    return GradientNoise(variance=batch * eta**2, along=0.0, mean_square=1.0)


def measured(growth, *batches, samples=4, ranks=1):
    for batch in batches:
        growth.measured(noise(batch), samples, ranks)
    return growth


def test_measurements_are_averaged_each_for_itself():
    growth, found = BatchGrowth(smoothing=0.7), []
    for step in range(9):
        found.append(GradientNoise(1.0 + step, 0.5 * step, 3.0 - step))
        growth.measured(found[-1], samples=4, ranks=1)
        weights = [0.7 ** (step - i) for i in range(step + 1)]
        for name in ("variance", "along", "mean_square"):
            values = [getattr(one, name) for one in found]
            mean = sum(weight * value for weight, value in zip(weights, values, strict=True)) / sum(weights)
            assert getattr(growth.noise, name) == pytest.approx(mean, rel=1e-12)


def test_samples_that_vary_are_averaged():
    growth = BatchGrowth(max_accumulation=1000, smoothing=0.9)
    for samples in [2.5, 9.0, 4.5, 7.0] * 20:
        growth.measured(noise(58), samples, ranks=1)
    assert growth.samples in (5, 6)
    assert growth.length in (10, 11, 12)  # 58 samples


def test_it_grows_to_the_smallest_multiple_that_is_enough_once_it_has_watched():
    growth = BatchGrowth(max_accumulation=1000, smoothing=0.0, max_growth=math.inf)
    for _ in range(FEWEST_MEASUREMENTS - 1):
        assert measured(growth, 33).length == 1
    assert measured(growth, 33).length == 9  # 36 samples
    assert measured(growth, 36).length == 9
    assert measured(growth, 36.1).length == 10
    assert measured(growth, 1).length == 10  # it never shrinks


@pytest.mark.parametrize(("first", "ranks", "expected"), [(1, 1, 25), (2, 1, 26), (1, 3, 9), (2, 3, 10)])
def test_multiples_are_of_the_first_batch_of_all_ranks(first, ranks, expected):
    growth = BatchGrowth(first_accumulation=first, max_accumulation=1000, smoothing=0.0, max_growth=math.inf)
    assert measured(growth, *[99] * 5, ranks=ranks).length == expected
    assert growth.batch_size(ranks) == 4 * expected * ranks


@pytest.mark.parametrize(("max_growth", "lengths"), [(2.0, [2, 4, 8, 16]), (1.5, [2, 3, 4, 6]), (3.0, [3, 9, 25, 25])])
def test_it_grows_by_so_much_at_a_time_and_by_one_at_least(max_growth, lengths):
    growth = measured(BatchGrowth(max_accumulation=1000, smoothing=0.0, max_growth=max_growth), *[0] * 4)
    assert [measured(growth, 100).length for _ in lengths] == lengths


@pytest.mark.parametrize("value", [math.inf, math.nan, -1.0, 0.0])
def test_what_is_not_a_batch_changes_nothing(value):
    growth = measured(BatchGrowth(smoothing=0.0), *[1] * 5)
    growth.measured(GradientNoise(value if value > 0 or math.isnan(value) else 1.0, 0.0, min(value, 1.0)), 4, 1)
    assert growth.length == 1


def test_the_loader_grows_when_accumulation_cannot():
    growth = BatchGrowth(
        max_accumulation=5, max_loader_batch_size=50, first_loader_batch_size=8, first_accumulation=2,
        first_epoch_batches=100, smoothing=0.0, max_growth=math.inf,
    )  # fmt: skip
    assert growth.grow_loader(1) == 0  # nothing is known
    assert measured(growth, *[20] * 5).length == 4  # of at most 5, in multiples of 2
    assert growth.grow_loader(1) == 16  # 20 samples, where 16 are made
    assert (growth.loader, growth.samples, growth.batch_size(1)) == (2, 8, 32)
    assert growth.grow_loader(1) == 0  # it was granted
    measured(growth, 1000, samples=8)
    assert growth.grow_loader(1) == 48
    assert (growth.loader, growth.batch_size(1)) == (6, 96)
    measured(growth, 1000, samples=24)
    assert growth.grow_loader(1) == 0
    assert growth.lr_scale("linear") == 12.0  # 2 for accumulation, 6 for the loader
    assert growth.lr_scale("sqrt") == pytest.approx(math.sqrt(12))
    assert growth.lr_scale(None) == 1.0


@pytest.mark.parametrize("accumulated", [1, 2, 3])
@pytest.mark.parametrize("batches", [7, 12])
def test_first_steps_of_an_epoch_add_up_to_what_they_were(accumulated, batches):
    growth = BatchGrowth(first_accumulation=accumulated, first_epoch_batches=batches)
    whole = math.ceil(batches / accumulated)
    assert growth.first_steps(batches, of=batches, is_last=True) == whole
    assert growth.first_steps(accumulated, of=batches, is_last=False) == 1
    for growth.loader in (2, 3, 5, 20):
        later = math.ceil(batches / growth.loader)
        steps = [growth.first_steps(batch, later, batch == later) for batch in range(later + 1)]
        assert steps == sorted(steps)
        assert (steps[0], steps[-1]) == (0, whole)


@pytest.mark.parametrize("epoch", [12, 11, 8, 6])
def test_a_limited_epoch_uses_its_first_steps_up_at_its_end(epoch):
    growth = BatchGrowth(first_epoch_batches=12, loader=2)
    steps = [growth.first_steps(batch, epoch, batch == epoch) for batch in range(epoch + 1)]
    assert (steps[0], steps[-1]) == (0, 12)
    assert all(1 <= after - before <= 2 for before, after in itertools.pairwise(steps))


def test_its_state_goes_on_where_it_was_and_is_a_copy():
    growth = measured(BatchGrowth(max_accumulation=64), *[100] * 7)
    state = growth.state_dict()
    other = BatchGrowth(max_accumulation=64)
    other.load_state_dict(state)
    measured(growth, 200), measured(other, 200)
    assert growth == other
    assert state["measurements"] == 7
    assert state["sums"] != growth.sums
