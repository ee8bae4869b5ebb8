# SPDX-License-Identifier: Apache-2.0
"""Floor 3: many steps, one question, one table, one picture."""
