# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.bench.recovery_times import restart_times, rollback_times


def test_every_bad_gradient_is_one_rollback(capsys):
    seconds = rollback_times(3)
    assert len(seconds) == 3
    assert all(0.0 < each < 30.0 for each in seconds)
    assert capsys.readouterr().out == ""


@pytest.mark.slow
def test_a_restart_is_a_process_that_comes_to_its_first_step(capfd):
    seconds = restart_times(1)
    assert len(seconds) == 1
    assert seconds[0] > max(rollback_times(1))
    assert capfd.readouterr().out == ""
