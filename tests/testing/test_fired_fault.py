# SPDX-License-Identifier: Apache-2.0
import json

from lightning_stable.testing import FiredFault


def test_it_goes_through_json_and_says_where():
    fault = FiredFault("nan_data", step=9, global_step=7, epoch=1, batch=2)
    assert FiredFault(**json.loads(json.dumps(fault.to_json()))) == fault
    assert str(fault) == "nan_data at step 9 (batch 2 of epoch 1)"
