# SPDX-License-Identifier: Apache-2.0
import itertools
import math

import pytest

from lightning_stable.functional import rewarmup


def reference_rewarmup(k, warmup_steps):
    if k < warmup_steps:
        return 1 - 0.99 * (1 + math.cos(math.pi * k / (warmup_steps + 1))) / 2
    return 1.0


@pytest.mark.parametrize("warmup_steps", [0, 1, 2, 6, 150])
def test_cosine_is_spam_s(warmup_steps):
    for k in range(200):
        assert rewarmup(k, warmup_steps) == pytest.approx(reference_rewarmup(k, warmup_steps), abs=1e-15)


@pytest.mark.parametrize("shape", ["cosine", "linear"])
def test_it_rises_from_a_hundredth_to_one(shape):
    curve = [rewarmup(k, 150, shape) for k in range(151)]
    assert curve[0] == pytest.approx(0.01)
    assert curve[150] == 1.0
    assert all(later > earlier for earlier, later in itertools.pairwise(curve))


def test_without_a_warmup_the_factor_is_one_at_once():
    assert rewarmup(0, 0) == 1.0
    assert rewarmup(0, 0, "linear") == 1.0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step": -1}, r"`rewarmup\(step=\.\.\.\)` must be at least 0, got -1"),
        ({"step": 0, "warmup_steps": -1}, r"`rewarmup\(warmup_steps=\.\.\.\)` must be at least 0, got -1"),
        ({"step": 0, "shape": "cubic"}, r'`rewarmup\(shape=\.\.\.\)` must be "cosine" or "linear", got \'cubic\''),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        rewarmup(**arguments)
