# SPDX-License-Identifier: Apache-2.0
"""A grid of runs and seeds, one question: who runs them, where they are kept, what is said about them."""
