# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest

from lightning_stable.testing import RecoveredRun


def test_it_is_a_record():
    run = RecoveredRun(incidents=[], fired=[], final_loss=1.0, global_step=3, halted=False)
    with pytest.raises(dataclasses.FrozenInstanceError):
        run.halted = True
