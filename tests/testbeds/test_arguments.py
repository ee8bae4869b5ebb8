# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.testbeds.arguments import require_at_least, require_dropout, require_one_of


def test_good_arguments_pass():
    require_at_least("Thing", 1, width=1, depth=None)
    require_one_of("Thing", ["a", "b"], kind="b")
    require_dropout("Thing", 0.0)


def test_the_first_bad_argument_is_named():
    with pytest.raises(ValueError, match=r"^`Thing\(depth=\.\.\.\)` must be at least 1, got 0\.$"):
        require_at_least("Thing", 1, width=3, depth=0, height=-1)


def test_what_is_known_is_listed():
    with pytest.raises(ValueError, match=r"^`Thing\(kind=\.\.\.\)` must be one of 'a', 'b', got 'c'\.$"):
        require_one_of("Thing", ["a", "b"], kind="c")


@pytest.mark.parametrize("dropout", [-0.1, 1.0, float("nan")])
def test_a_dropout_that_is_no_chance_is_refused(dropout):
    with pytest.raises(ValueError, match=r"^`Thing\(dropout=\.\.\.\)` must be in \[0, 1\), got "):
        require_dropout("Thing", dropout)
