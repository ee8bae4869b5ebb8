# SPDX-License-Identifier: Apache-2.0
"""Floor 1: learning-rate schedules."""

from lightning_stable.schedules.rex import REXLR as REXLR
