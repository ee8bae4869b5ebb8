# SPDX-License-Identifier: Apache-2.0
"""Floor 1: what an optimizer needs, in any PyTorch loop."""

from lightning_stable.optim.moments import reset_moments as reset_moments
from lightning_stable.optim.step_gate import StepGate as StepGate
