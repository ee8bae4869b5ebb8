# SPDX-License-Identifier: Apache-2.0
"""Floor 1: transforms of gradients, for any optimizer in any PyTorch loop."""

from lightning_stable.transforms.ada_clip import AdaClip as AdaClip
from lightning_stable.transforms.ada_grad_norm import AdaGradNorm as AdaGradNorm
from lightning_stable.transforms.adaptive_gradient_clip import AdaptiveGradientClip as AdaptiveGradientClip
from lightning_stable.transforms.global_norm_clip import GlobalNormClip as GlobalNormClip
from lightning_stable.transforms.gradient_centralization import GradientCentralization as GradientCentralization
from lightning_stable.transforms.norm_growth_limiter import NormGrowthLimiter as NormGrowthLimiter
from lightning_stable.transforms.orthogonal_gradient import OrthogonalGradient as OrthogonalGradient
from lightning_stable.transforms.spike_clip import SpikeClip as SpikeClip
from lightning_stable.transforms.transform import Transform as Transform
from lightning_stable.transforms.z_score_clip import ZScoreClip as ZScoreClip
