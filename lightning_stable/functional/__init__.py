# SPDX-License-Identifier: Apache-2.0
"""Floor 0: maths on tensors; imports torch only."""

from lightning_stable.functional.rex import rex as rex
