# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.detectors.arguments import require, require_rebaseline


def test_what_holds_is_let_through_and_the_rest_is_named():
    require("Ratio", "window", 3, holds=True, allowed="at least 1")
    with pytest.raises(ValueError, match=r"^`Ratio\(window=...\)` must be at least 1, got 'x'.$"):
        require("Ratio", "window", "x", holds=False, allowed="at least 1")


def test_a_share_is_above_0_and_at_most_1_or_none():
    for share in (None, 0.01, 1, 1.0):
        require_rebaseline("Ratio", share)
    for share in (0.0, -0.5, 1.1, float("nan")):
        with pytest.raises(ValueError, match=r"^`Ratio\(rebaseline=...\)` must be above 0 and at most 1, or `None`"):
            require_rebaseline("Ratio", share)
