# SPDX-License-Identifier: Apache-2.0
"""Floor 1: modules."""

from lightning_stable.nn.ghost_batch_norm import GhostBatchNorm as GhostBatchNorm
from lightning_stable.nn.ghost_batch_norm import convert_ghost_batchnorm as convert_ghost_batchnorm
