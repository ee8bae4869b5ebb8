# SPDX-License-Identifier: Apache-2.0
"""Lightning's command line: what is built from a configuration, and what is said when that fails."""
