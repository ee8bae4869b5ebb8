# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.studies.survival.run_numbers import Size, reset_interval, reset_warmup, warmup_steps


@pytest.mark.parametrize(
    ("steps", "warmup", "interval", "back"), [(400, 40, 200, 20), (200, 20, 100, 10), (2, 0, 2, 0)]
)
def test_what_depends_on_the_length_is_a_share_of_it(steps, warmup, interval, back):
    assert (warmup_steps(steps), reset_interval(steps), reset_warmup(steps)) == (warmup, interval, back)


def test_the_size_of_the_study():
    size = Size()
    assert (size.n_layer, size.d_model, size.lr) == (2, 64, 2e-3)
