# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.guard.lr_scale import LRScale


def values(scale, steps):
    """The scale that each of the next `steps` clean steps runs at."""
    found = []
    for _ in range(steps):
        found.append(scale.value)
        scale.clean_step()
    return found


def test_it_stays_where_it_is_without_a_way_back():
    scale = LRScale()
    scale.multiply(0.5, recover_after=None)
    scale.multiply(0.5, recover_after=None)
    assert values(scale, 50) == [0.25] * 50


@pytest.mark.parametrize("after", [1, 3, 10])
def test_it_rises_in_equal_ratios_and_ends_at_one_exactly(after):
    scale = LRScale()
    scale.multiply(0.1, recover_after=after)
    found = values(scale, 3 * after)
    assert found[:after] == [0.1] * after
    assert found[after : 2 * after] == pytest.approx([0.1 ** (1 - k / after) for k in range(1, after + 1)])
    assert found[2 * after - 1 :] == [1.0] * (after + 1)


def test_a_spike_stops_it_and_a_further_cut_multiplies():
    scale = LRScale()
    scale.multiply(0.25, recover_after=4)
    values(scale, 5)
    scale.spike()
    assert values(scale, 6) == pytest.approx([0.5] * 4 + [0.5 ** (3 / 4), 0.5 ** (1 / 2)])
    scale = LRScale()
    scale.multiply(0.25, recover_after=4)
    scale.multiply(0.5, recover_after=2)
    assert values(scale, 4) == pytest.approx([0.125, 0.125, 0.125**0.5, 1.0])


@pytest.mark.parametrize("at", range(9))
def test_it_goes_on_from_a_state_dict(at):
    first, second = LRScale(), LRScale()
    first.multiply(0.3, recover_after=4)
    values(first, at)
    second.load_state_dict(first.state_dict())
    assert values(second, 9) == values(first, 9)
