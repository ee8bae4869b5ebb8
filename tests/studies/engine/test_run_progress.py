# SPDX-License-Identifier: Apache-2.0
"""The bar over the runs."""

import io

import pytest

from lightning_stable.studies.engine.run_progress import RunProgress


class Clock:
    now = 0.0

    def __call__(self):
        return self.now


@pytest.fixture
def clock():
    return Clock()


def said(progress):
    return progress.line.stream.getvalue().splitlines()


def test_the_estimate_counts_long_runs_for_more(clock):
    progress = RunProgress("toy", [1.0, 3.0, 4.0], io.StringIO(), clock)
    progress.begin_at(0.0)
    clock.now = 100.0
    progress(done=1, failed=0, cost_done=1.0)
    assert said(progress) == ["toy [##..................] 1 of 3 runs, about 12 min left:  12 %"]


def test_what_was_done_before_says_nothing_about_the_speed(clock):
    progress = RunProgress("toy", [1.0] * 10, io.StringIO(), clock)
    progress.begin_at(5.0)
    clock.now = 20.0
    progress(done=5, failed=1, cost_done=5.0)
    clock.now = 40.0
    progress(done=6, failed=1, cost_done=6.0)
    first, second = said(progress)
    assert "left" not in first
    assert "6 of 10 runs, 1 failed, about 160 s left" not in second
    assert "6 of 10 runs, 1 failed, about 3 min left" in second


@pytest.mark.parametrize(("seconds", "text"), [(60.0, "60 s"), (1200.0, "20 min"), (9000.0, "2.5 h")])
def test_the_estimate_is_in_units_that_can_be_read(seconds, text, clock):
    progress = RunProgress("toy", [1.0, 1.0], io.StringIO(), clock)
    progress.begin_at(0.0)
    clock.now = seconds
    progress(done=1, failed=0, cost_done=1.0)
    assert said(progress)[0].endswith(f"about {text} left:  50 %")


def test_runs_that_cost_nothing_are_done(clock):
    progress = RunProgress("toy", [0.0], io.StringIO(), clock)
    clock.now = 20.0
    progress(done=1, failed=0, cost_done=0.0)
    assert said(progress) == ["toy [####################] 1 of 1 runs: 100 %"]
