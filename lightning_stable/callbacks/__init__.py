# SPDX-License-Identifier: Apache-2.0
"""Floor 2: Lightning callbacks that change training."""

from lightning_stable.callbacks.adaptive_batch_size import AdaptiveBatchSize as AdaptiveBatchSize
from lightning_stable.callbacks.create_graph import CreateGraph as CreateGraph
from lightning_stable.callbacks.dropout_schedule import DropoutSchedule as DropoutSchedule
from lightning_stable.callbacks.gauss_newton_bartlett import GaussNewtonBartlett as GaussNewtonBartlett
from lightning_stable.callbacks.gradient_norm_recorder import GradientNormRecorder as GradientNormRecorder
from lightning_stable.callbacks.gradient_transforms import GradientTransforms as GradientTransforms
from lightning_stable.callbacks.lr_range_test import LRRangeTest as LRRangeTest
from lightning_stable.callbacks.momentum_reset import MomentumReset as MomentumReset
from lightning_stable.callbacks.schedule_free import ScheduleFree as ScheduleFree
from lightning_stable.callbacks.training_budget import TrainingBudget as TrainingBudget
from lightning_stable.callbacks.sequence_length_warmup import SequenceLengthWarmup as SequenceLengthWarmup
