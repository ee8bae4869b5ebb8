# SPDX-License-Identifier: Apache-2.0
"""Floor 1+: the whole state of a running fit, copied in memory and put back, bit for bit."""
