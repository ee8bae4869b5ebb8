# SPDX-License-Identifier: Apache-2.0
"""Log how far each attention head spreads, so that a collapse is seen before the loss diverges."""

import math
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from torch import Tensor

from lightning_stable._lightning.loggers import can_show, log_figure, log_histogram
from lightning_stable.monitors.attention_tap import AttentionTap, SeenAttention
from lightning_stable.monitors.monitor import Monitor

_ENTROPY, _MAX_LOGIT = "stability/attention_entropy", "stability/attention_max_logit"


class AttentionEntropyMonitor(Monitor):
    """Logs the entropy of attention and its largest logit, for every layer of any model, without a change to it.

        H = mean over samples and queries of -sum_j p_j log p_j,  p = softmax(l);    max logit = max l

    in nats, from 0 (a head looks at one key) to log(keys) (it looks at all alike). Entropy that falls towards 0, or a
    largest logit that grows without end, comes before divergence.

    Paper: Zhai et al., "Stabilizing Transformer Training by Preventing Attention Entropy Collapse" (ICML 2023);
    Wortsman et al., "Small-scale proxies for large-scale Transformer training instabilities" (ICLR 2024), for the
    largest logit.

    Deviations: numbers are taken from at most `max_queries` evenly spaced queries, the last one among them, before
    dropout, in single precision at least.

    What is logged, `<path>` being the module that computes the attention, as in `named_modules`:

    - `stability/attention_entropy/<path>`, mean over the heads; `stability/attention_entropy/min` and `/mean` over
      all layers and heads;
    - `stability/attention_max_logit/<path>`, maximum over the heads, and `/max` over all layers;
    - single heads only as pictures, where a logger can show them (TensorBoard): the histogram
      `stability/attention_entropy/heads` and the heat map layer x head `stability/attention_entropy/map`, which is
      left out where matplotlib is not installed.

    What is seen: calls of `torch.nn.functional.scaled_dot_product_attention`, and `nn.MultiheadAttention`, also with
    `need_weights=True`. Several calls of one module are averaged. q and k with three dimensions count as one head.
    On measured steps the function in `torch.nn.functional` is replaced, from the start of the batch to the first
    backward pass, so recomputation under activation checkpointing counts once; on all others nothing is touched.

    What is not seen: functions imported by name (`from torch.nn.functional import scaled_dot_product_attention`),
    attention written out by hand or by other packages, a frozen `nn.MultiheadAttention` on torch's fast path, and
    code compiled by torch.compile, which the first measured step makes compile once more, to the same result. With
    `uncompile=True` measured steps run without torch.compile and are seen; results may then differ in the last bits
    from those of compiled code, and so may dropout. Who sees nothing at all in the first measured step is warned.

    See `Monitor` for the steps that are measured.

    Args:
        every_n_steps: Optimizer steps from one measurement to the next.
        max_queries: The most queries used of each sample and head.
        uncompile: Whether measured steps run without torch.compile.

    Raises:
        ValueError: If `every_n_steps` or `max_queries` is less than 1.

    Example:
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(accelerator="cpu", callbacks=[AttentionEntropyMonitor(every_n_steps=10)], **quiet)
    """

    def __init__(self, every_n_steps: int = 50, max_queries: int = 128, uncompile: bool = False) -> None:
        super().__init__(every_n_steps)
        if max_queries < 1:
            raise ValueError(f"`AttentionEntropyMonitor(max_queries=...)` must be at least 1, got {max_queries}.")
        self.max_queries = max_queries
        self.uncompile = uncompile
        self._tap: AttentionTap | None = None
        self._layers: dict[str, SeenAttention] = {}
        self._warned: set[str] = set()

    def begin(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Tap the functions that compute attention."""
        self._tap = AttentionTap(pl_module, self.max_queries, self.uncompile)
        self._tap.attach()

    def end(self) -> None:
        """Leave torch as it was."""
        if self._tap is not None:
            self._tap.detach()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Report: the forward pass is over, and a guard may watch the numbers in this very step."""
        self.report(trainer, pl_module)

    def measure(self, trainer: Trainer, pl_module: LightningModule) -> dict[str, Tensor]:
        """Return the scalars of what was seen."""
        assert self._tap is not None
        tap, self._tap = self._tap, None
        self._warn(tap)
        self._layers = {path: _merged(calls) for path, calls in tap.seen.items()}
        if not self._layers:
            return {}
        layers = self._layers.items()
        entropies, logits = self._heads(), torch.cat([layer.max_logit for _, layer in layers])
        return {
            **{f"{_ENTROPY}/{path}": layer.entropy.mean() for path, layer in layers},
            f"{_ENTROPY}/min": entropies.min(),
            f"{_ENTROPY}/mean": entropies.mean(),
            **{f"{_MAX_LOGIT}/{path}": layer.max_logit.max() for path, layer in layers},
            f"{_MAX_LOGIT}/max": logits.max(),
        }

    def draw(self, trainer: Trainer) -> None:
        """Log histogram and heat map of the heads."""
        if can_show(trainer, "histogram"):
            log_histogram(trainer, f"{_ENTROPY}/heads", self._heads())
        if can_show(trainer, "figure") and (figure := _heat_map(self._layers)) is not None:
            log_figure(trainer, f"{_ENTROPY}/map", figure)
        self._layers = {}

    def _heads(self) -> Tensor:
        return torch.cat([layer.entropy for layer in self._layers.values()])

    def _warn(self, tap: AttentionTap) -> None:
        for path, kind in tap.unreadable.items():
            self._warn_once(
                path,
                f"`AttentionEntropyMonitor` cannot read the attention of `{path}`, whose tensors are nested, sharded "
                f"or otherwise not plain ({kind}). It is left out.",
            )
        if not tap.seen and not tap.unreadable:
            self._warn_once(
                "",
                "`AttentionEntropyMonitor` saw no attention in a measured step. It sees "
                "`torch.nn.functional.scaled_dot_product_attention` and `nn.MultiheadAttention`. If the model has "
                "`from torch.nn.functional import scaled_dot_product_attention`, write "
                "`import torch.nn.functional as F` and call `F.scaled_dot_product_attention`. If it is compiled by "
                "torch.compile, use `AttentionEntropyMonitor(uncompile=True)`.",
            )

    def _warn_once(self, about: str, message: str) -> None:
        if about not in self._warned:
            self._warned.add(about)
            rank_zero_warn(message)


def _merged(calls: list[SeenAttention]) -> SeenAttention:
    """One module's calls as one, on the CPU: mean entropy and largest logit; unlike numbers of heads side by side."""
    entropies, logits = [call.entropy.cpu() for call in calls], [call.max_logit.cpu() for call in calls]
    keys = max(call.keys for call in calls)
    if len({len(entropy) for entropy in entropies}) > 1:
        return SeenAttention(torch.cat(entropies), torch.cat(logits), keys)
    return SeenAttention(torch.stack(entropies).mean(0), torch.stack(logits).amax(0), keys)


def _heat_map(layers: dict[str, SeenAttention]) -> Any:
    """A matplotlib figure, layers x heads, from 0 to log(keys) nats; `None` where matplotlib is not installed."""
    try:
        from matplotlib.figure import Figure
    except ImportError:
        return None
    width = max(len(layer.entropy) for layer in layers.values())
    grid = torch.full((len(layers), width), math.nan, dtype=torch.float32)
    for row, layer in zip(grid, layers.values(), strict=True):
        row[: len(layer.entropy)] = layer.entropy
    most = math.log(max(2, *(layer.keys for layer in layers.values())))
    figure = Figure(figsize=(4 + min(6, 0.2 * width), 1.5 + min(9, 0.25 * len(layers))), dpi=80, layout="constrained")
    axes = figure.add_subplot()
    image = axes.imshow(grid.numpy(), vmin=0, vmax=most, aspect="auto", interpolation="nearest")
    axes.set_xlabel("head")
    axes.set_xticks(range(0, width, max(1, width // 8)))
    shown = range(0, len(layers), max(1, len(layers) // 32))
    axes.set_yticks(shown, [list(layers)[index] for index in shown])
    axes.set_title("attention entropy in nats", fontsize=10)
    figure.colorbar(image, ax=axes)
    return figure
