# SPDX-License-Identifier: Apache-2.0
"""Population based training with Ray Tune: the members side by side, on one machine or several."""
