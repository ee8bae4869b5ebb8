# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.testing import InjectFault


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"kind": "nan_los"}, r"`InjectFault\(kind='nan_los'\)` is not known. Did you mean 'nan_loss'\?"),
        ({"kind": "zzz"}, r"`InjectFault\(kind='zzz'\)` is not known. There are 'nan_loss', 'huge_loss'"),
        ({"step": -1}, r"`InjectFault\(step=...\)` must be at least 0, got -1."),
        ({"rank": -2}, r"`InjectFault\(rank=...\)` must be at least 0, got -2."),
        ({"factor": 2.0}, r"`InjectFault\('nan_loss'\)` takes no `factor`, got 2.0."),
        ({"target": "x"}, r"`InjectFault\('nan_loss'\)` takes no `target`, got 'x'."),
        ({"how": "empty"}, r"`InjectFault\('nan_loss'\)` takes no `how`, got 'empty'."),
        ({"seed": 3}, r"`InjectFault\('nan_loss'\)` takes no `seed`, got 3."),
        ({"kind": "kill", "repeat": True}, r"`InjectFault\('kill'\)` takes no `repeat`, got True."),
        (
            {"kind": "huge_loss", "factor": 0.0},
            r"`InjectFault\(factor=...\)` must be finite and larger than 0, got 0",
        ),
        ({"kind": "huge_loss", "factor": float("nan")}, r"must be finite and larger than 0, got nan."),
        (
            {"kind": "label_noise", "how": "empty"},
            r"one of 'shuffle', 'replace' for 'label_noise', got 'empty'",
        ),
    ],
)
def test_a_bad_argument_is_named_with_its_value_and_its_bound(arguments, message):
    with pytest.raises(ValueError, match=message):
        InjectFault(**{"kind": "nan_loss", "step": 3, **arguments})
