# SPDX-License-Identifier: Apache-2.0
"""Going on from a checkpoint as if nothing had happened."""
