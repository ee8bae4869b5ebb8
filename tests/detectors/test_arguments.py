# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.detectors.arguments import require


def test_what_holds_is_let_through_and_the_rest_is_named():
    require("Ratio", "window", 3, holds=True, allowed="at least 1")
    with pytest.raises(ValueError, match=r"^`Ratio\(window=...\)` must be at least 1, got 'x'.$"):
        require("Ratio", "window", "x", holds=False, allowed="at least 1")
