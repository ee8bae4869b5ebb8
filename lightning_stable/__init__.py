# SPDX-License-Identifier: Apache-2.0
"""Keep PyTorch Lightning runs alive: detect loss spikes, act on them, observe and prevent them.

Nothing is imported until it is asked for, so that the lower floors work where Lightning is not installed.

Example:
    >>> import lightning_stable
    >>> lightning_stable.SpikeGuard.__name__
    'SpikeGuard'
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from lightning_stable.callbacks import GradientTransforms as GradientTransforms
    from lightning_stable.callbacks import MomentumReset as MomentumReset
    from lightning_stable.guard import SpikeGuard as SpikeGuard
    from lightning_stable.monitors import AttentionEntropyMonitor as AttentionEntropyMonitor
    from lightning_stable.optim import SPAM as SPAM
    from lightning_stable.optim import StableSPAM as StableSPAM
    from lightning_stable.schedules import ProfileLR as ProfileLR

__version__ = "0.1.0"

_HEADLINES = {
    "AttentionEntropyMonitor": "lightning_stable.monitors",
    "GradientTransforms": "lightning_stable.callbacks",
    "MomentumReset": "lightning_stable.callbacks",
    "ProfileLR": "lightning_stable.schedules",
    "SPAM": "lightning_stable.optim",
    "SpikeGuard": "lightning_stable.guard",
    "StableSPAM": "lightning_stable.optim",
}

__all__ = [
    "SPAM",
    "AttentionEntropyMonitor",
    "GradientTransforms",
    "MomentumReset",
    "ProfileLR",
    "SpikeGuard",
    "StableSPAM",
    "__version__",
]


def __getattr__(name: str) -> Any:
    if name in _HEADLINES:
        return getattr(import_module(_HEADLINES[name]), name)
    raise AttributeError(f"module 'lightning_stable' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
