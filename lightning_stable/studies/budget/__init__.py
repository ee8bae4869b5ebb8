# SPDX-License-Identifier: Apache-2.0
"""Which schedule is best when a run may only take so long."""
