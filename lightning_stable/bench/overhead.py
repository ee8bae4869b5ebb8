# SPDX-License-Identifier: Apache-2.0
"""What the guard costs: medians of a step, interleaved in one process, as ratios to the bare Trainer."""

import argparse
import logging
import statistics
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import SpikeDetection
from torch import nn
from torch.utils.data import DataLoader

from lightning_stable.guard import Halt, SkipStep, SpikeGuard


class _TinyMLP(LightningModule):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 1))

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        inputs, targets = batch
        return nn.functional.mse_loss(self.layers(inputs), targets)

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-3)


class _Clock(Callback):
    def __init__(self) -> None:
        self.times: list[float] = []

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        self.times.append(time.perf_counter())


def main(argv: list[str] | None = None) -> int:
    """Print one line a variant.

    Example:
        >>> main.__name__
        'main'
    """
    parser = argparse.ArgumentParser(prog="lightning-stable bench overhead")
    parser.add_argument("--steps", type=int, default=500, help="steps a measurement")
    parser.add_argument("--rounds", type=int, default=5, help="interleaved repetitions")
    arguments = parser.parse_args(argv)
    variants: dict[str, Any] = {
        "bare": lambda: [],
        "SpikeDetection": lambda: [SpikeDetection(rtol=1e9)],
        "SpikeGuard, no snapshots": lambda: [SpikeGuard(ladder=[SkipStep(), Halt()])],
    }
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(arguments.rounds):
        for name, make in variants.items():
            seconds[name].append(_seconds_a_step(make(), arguments.steps))
    bare = statistics.median(seconds["bare"])
    print("tiny MLP, median of a step, ratio to the bare Trainer")
    for name, values in seconds.items():
        median = statistics.median(values)
        print(f"  {name:<26}{1e6 * median:9.0f} us  x {median / bare:.3f}")
    return 0


def _seconds_a_step(callbacks: list[Callback], steps: int) -> float:
    clock = _Clock()
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    data: Any = [(torch.randn(8, 16), torch.randn(8, 1)) for _ in range(steps)]
    quiet: dict[str, Any] = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        trainer = Trainer(accelerator="cpu", devices=1, max_epochs=1, callbacks=[*callbacks, clock], **quiet)
        trainer.fit(_TinyMLP(), DataLoader(data, batch_size=None))
    return statistics.median(b - a for a, b in zip(clock.times, clock.times[1:], strict=False))
