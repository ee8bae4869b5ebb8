# SPDX-License-Identifier: Apache-2.0
"""Lightning callbacks that only watch: they change no weight, gradient, buffer, metric or random number."""

from lightning_stable.monitors.attention_entropy import AttentionEntropyMonitor as AttentionEntropyMonitor
from lightning_stable.monitors.gradient_norm import GradientNormMonitor as GradientNormMonitor
from lightning_stable.monitors.monitor import Monitor as Monitor
