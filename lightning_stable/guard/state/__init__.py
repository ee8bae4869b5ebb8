# SPDX-License-Identifier: Apache-2.0
"""What a training step changes beside the weights."""
