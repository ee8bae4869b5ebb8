# SPDX-License-Identifier: Apache-2.0
"""Floor 3: measurements."""
