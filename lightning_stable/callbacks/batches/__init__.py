# SPDX-License-Identifier: Apache-2.0
"""What an optimizer step is made of: how many samples, how noisy their gradients, and what schedules are told of it."""
