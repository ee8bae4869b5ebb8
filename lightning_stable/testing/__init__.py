# SPDX-License-Identifier: Apache-2.0
"""Floor 2: fault injection and assertions for your own test suite."""

from lightning_stable.testing.assert_recovers import assert_recovers as assert_recovers
from lightning_stable.testing.fault_schedule import FaultSchedule as FaultSchedule
from lightning_stable.testing.fault_schedule import random_faults as random_faults
from lightning_stable.testing.fired_fault import FiredFault as FiredFault
from lightning_stable.testing.inject_fault import InjectFault as InjectFault
from lightning_stable.testing.recovered_run import RecoveredRun as RecoveredRun
