# SPDX-License-Identifier: Apache-2.0
import math

from lightning_stable.detectors.rejections import Rejections


def test_the_share_is_of_the_latest_values_only():
    rejections = Rejections(window=100, share=0.1)
    for _ in range(10):
        assert not rejections.next_is_level_change
        rejections.add(5.0)
    assert rejections.next_is_level_change
    rejections.pass_over(89)
    assert rejections.next_is_level_change  # all ten are still among the latest 99
    rejections.pass_over(1)
    assert not rejections.next_is_level_change


def test_a_short_window_does_not_take_a_handful_of_spikes_for_a_level():
    rejections = Rejections(window=4, share=0.25)
    for _ in range(16):
        assert not rejections.next_is_level_change
        rejections.add(5.0)
    assert rejections.next_is_level_change


def test_what_is_not_finite_is_no_level_and_none_is_wanted_without_a_share():
    rejections, never = Rejections(window=64, share=0.25), Rejections(window=64, share=None)
    for _ in range(100):
        rejections.add(math.nan)
        never.add(5.0)
    assert not rejections.next_is_level_change
    assert not never.next_is_level_change
    assert rejections.take() == []


def test_taking_forgets():
    rejections = Rejections(window=64, share=0.25)
    for value in range(16):
        rejections.add(float(value))
    assert rejections.take() == [float(value) for value in range(16)]
    assert not rejections.next_is_level_change
