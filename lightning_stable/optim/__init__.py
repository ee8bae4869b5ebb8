# SPDX-License-Identifier: Apache-2.0
"""Floor 1: optimizers, and what one needs around them, in any PyTorch loop."""

from lightning_stable.optim.adam_atan2 import AdamAtan2 as AdamAtan2
from lightning_stable.optim.diff_grad import DiffGrad as DiffGrad
from lightning_stable.optim.grams import Grams as Grams
from lightning_stable.optim.lamb import LAMB as LAMB
from lightning_stable.optim.moment_optimizer import MomentOptimizer as MomentOptimizer
from lightning_stable.optim.moments import reset_moments as reset_moments
from lightning_stable.optim.muon_groups import muon_groups as muon_groups
from lightning_stable.optim.sam import SAM as SAM
from lightning_stable.optim.sophia import SophiaG as SophiaG
from lightning_stable.optim.spam import SPAM as SPAM
from lightning_stable.optim.stable_spam import StableSPAM as StableSPAM
from lightning_stable.optim.step_gate import StepGate as StepGate
