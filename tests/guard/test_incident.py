# SPDX-License-Identifier: Apache-2.0
import json
import math

import pytest

from lightning_stable.guard import Incident
from lightning_stable.guard.incident import WARNING


def incident(**changes):
    fields = {
        "step": 12,
        "global_step": 10,
        "epoch": 1,
        "batches": [4, 5],
        "signal": "grad_norm",
        "value": 80.0,
        "threshold": 3.25,
        "response": "Rollback",
        "restored": ["weights"],
        "steps_rolled_back": 3,
    }
    return Incident(**{**fields, **changes})


@pytest.mark.parametrize("value", [1.5, float("inf"), float("-inf"), float("nan")])
def test_it_survives_strict_json(value):
    written = json.dumps(incident(value=value, threshold=math.inf).to_json(), allow_nan=False)
    read = Incident.from_json(json.loads(written))
    assert read.value == value or math.isnan(value)
    assert read.threshold == math.inf
    assert read.batches == [4, 5]


def test_it_says_in_one_line_what_happened():
    assert str(incident()) == "step 12: grad_norm 80 above 3.25, Rollback (batches [4, 5] of epoch 1)"
    assert "above" not in str(incident(threshold=math.inf))
    assert str(incident(batches_passed_over=8)).endswith("Rollback (batches [4, 5] of epoch 1, 8 passed over)")


def test_all_that_was_done_survives_json():
    done = {"batches_passed_over": 8, "norm_before": 80.0, "norm_after": 2.0, "notes": ["batch saved to here"]}
    read = Incident.from_json(json.loads(json.dumps(incident(**done).to_json())))
    assert {name: getattr(read, name) for name in done} == done


def test_a_cause_is_said_and_survives_json():
    found = incident(cause="the data", batch_hash=["ab", "cd"])
    assert str(found).endswith("Rollback (batches [4, 5] of epoch 1); cause: the data")
    assert Incident.from_json(json.loads(json.dumps(found.to_json()))) == found
    old = {name: value for name, value in found.to_json().items() if name not in ("cause", "batch_hash")}
    assert (Incident.from_json(old).cause, Incident.from_json(old).batch_hash) == ("", [])


def test_the_limit_is_told_as_what_it_is():
    assert ": grad_norm 80 above 3.25, " in str(incident())
    assert ": grad_norm 3 below 3.25, " in str(incident(value=3.0))
    assert ": grad_norm 3 instead of 3.25, " in str(incident(value=3.0, response="RestartOptimizer"))
    assert ": grad_norm is 80, Warning " in str(incident(response=WARNING))
    assert "(before a batch of epoch 1)" in str(incident(batches=[]))
