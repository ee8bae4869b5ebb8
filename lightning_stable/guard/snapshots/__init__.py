# SPDX-License-Identifier: Apache-2.0
"""How the training state is copied, kept and put back."""
