# SPDX-License-Identifier: Apache-2.0
"""Floor 2: the guard against loss spikes: responses, snapshots, replay, incidents."""

from lightning_stable.guard.diagnosis import Diagnose as Diagnose
from lightning_stable.guard.incident import Incident as Incident
from lightning_stable.guard.responses import ClipStep as ClipStep
from lightning_stable.guard.responses import Halt as Halt
from lightning_stable.guard.responses import ResetMomentum as ResetMomentum
from lightning_stable.guard.responses import Response as Response
from lightning_stable.guard.responses import ScaleLR as ScaleLR
from lightning_stable.guard.responses import SkipStep as SkipStep
from lightning_stable.guard.responses import TrainingHalted as TrainingHalted
from lightning_stable.guard.rollback import Rollback as Rollback
from lightning_stable.guard.rollback import SkipData as SkipData
from lightning_stable.guard.saved_step import SavedStep as SavedStep
from lightning_stable.guard.side_responses import Notify as Notify
from lightning_stable.guard.side_responses import SaveBatch as SaveBatch
from lightning_stable.guard.spike_guard import SpikeGuard as SpikeGuard
