# SPDX-License-Identifier: Apache-2.0
"""Floor 2: LightningModule mixins."""

from lightning_stable.mixins.scheduled_optimizer import ScheduledOptimizerMixin as ScheduledOptimizerMixin
