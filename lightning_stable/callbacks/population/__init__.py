# SPDX-License-Identifier: Apache-2.0
"""What `PopulationBasedTraining` is made of."""
