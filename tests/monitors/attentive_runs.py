# SPDX-License-Identifier: Apache-2.0
"""A small run with attention, BatchNorm and Dropout in it, and a logger that remembers."""

import torch.nn.functional as F
from lightning.pytorch.loggers import Logger
from torch import nn

from tests.faulty_runs import ManualNet, Net


class Attention(nn.Module):
    """Two heads over eight positions, through `F.scaled_dot_product_attention`."""

    def __init__(self, channels=4):
        super().__init__()
        self.qkv = nn.Linear(channels, 3 * channels)
        self.seen = []

    def forward(self, x):
        q, k, v = (part.unflatten(-1, (2, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        if self.training:
            self.seen.append((q.detach(), k.detach()))
        dropout = 0.2 if self.training else 0.0
        return F.scaled_dot_product_attention(q, k, v, is_causal=True, dropout_p=dropout).transpose(1, 2).flatten(2)


class Attentive(nn.Module):
    """Three ways to attend: the function, and torch's module with weights and without."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Linear(1, 4)
        self.attention = Attention()
        self.with_weights = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)
        self.without_weights = nn.MultiheadAttention(4, 2, dropout=0.2, batch_first=True)
        self.out = nn.Linear(4, 1)

    def forward(self, x):
        h = self.embed(x[..., None])
        h = h + self.attention(h)
        h = h + self.with_weights(h, h, h)[0]
        h = h + self.without_weights(h, h, h, need_weights=False)[0]
        return self.out(h)[..., 0]


LAYERS = ("layers.0.attention", "layers.0.with_weights", "layers.0.without_weights")


class AttentiveNet(Net):
    """`Net`, which has BatchNorm, Dropout, a metric and schedules, after attention."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layers.insert(0, Attentive())


class ManualAttentiveNet(ManualNet):
    """The same by hand."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.layers.insert(0, Attentive())


class Remembers(Logger):
    """Keeps the monitors' scalars, by step, in memory."""

    name, version = "remembers", 0

    def __init__(self):
        super().__init__()
        self.sent = {}

    def log_metrics(self, metrics, step=None):
        ours = {key: value for key, value in metrics.items() if key.startswith("stability/")}
        if ours:
            self.sent.setdefault(step, {}).update(ours)

    def log_hyperparams(self, *args, **kwargs):
        pass
