# SPDX-License-Identifier: Apache-2.0
"""One run of the study: the convolutional net on the digits, trained for a share of the steps of a full run."""

import math
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.optim import SGD, Adam, Optimizer
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_stable.schedules import ProfileLR
from lightning_stable.testbeds import DigitsDataModule
from lightning_stable.testbeds.digit_networks import conv
from lightning_stable.testbeds.seeding import seeded_generator

TRAIN, VALIDATION, TEST = 897, 300, 600  # of 1797 digits; so large a test, since few are wrong
BATCH, WIDTH = 16, 12
STEPS_PER_EPOCH = TRAIN // BATCH
MOMENTUM, WEIGHT_DECAY = 0.9, 5e-4  # of SGD
CHECKS, PATIENCE, FACTOR = 20, 2, 0.1  # of the plateau: looks at the validation loss, in every run as many
PLATEAU = "Plateau"


@dataclass(frozen=True)
class Digits:
    """The digits of the study in three parts, as pairs of pixels and targets.

    Args:
        train: To learn from.
        validation: To choose the learning rate by, and for the plateau.
        test: What is reported.

    Example:
        >>> pair = torch.zeros(1, 1, 8, 8), torch.tensor([3])
        >>> Digits(pair, pair, pair).test[1]
        tensor([3])
    """

    train: tuple[Tensor, Tensor]
    validation: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @staticmethod
    def load() -> "Digits":
        """The same three parts every time; what is trained on is from the data module's training part."""
        data = DigitsDataModule()
        data.setup()
        assert data.train_images is not None
        assert data.val_images is not None
        pixels = torch.cat([data.train_images.pixels, data.val_images.pixels])
        targets = torch.cat([data.train_images.targets, data.val_images.targets])
        ends = (0, TRAIN, TRAIN + VALIDATION, TRAIN + VALIDATION + TEST)
        parts = [(pixels[begin:end], targets[begin:end]) for begin, end in pairwise(ends)]
        return Digits(*parts)


def train(
    digits: Digits, schedule: str, optimizer: str, lr: float, budget: float, epochs: int, seed: int
) -> dict[str, float]:
    """Train, and return errors in percent and losses in nats at the end of the run.

    The seed decides first weights and the order of the batches: both are the same for all schedules, and for all
    learning rates and budgets.

    Args:
        digits: The data.
        schedule: A profile of `lightning_stable.schedules`, or `Plateau`.
        optimizer: `sgd` or `adam`.
        lr: The base rate.
        budget: The share of a full run's steps.
        epochs: Of a full run.
        seed: Of weights and batches.
    """
    steps = max(1, round(budget * epochs * STEPS_PER_EPOCH))
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network = conv(WIDTH, dropout=0.0)
    chosen = make_optimizer(optimizer, network, lr)
    scheduler = None if schedule == PLATEAU else ProfileLR(chosen, schedule, total_steps=steps)
    plateau = ReduceLROnPlateau(chosen, factor=FACTOR, patience=PATIENCE) if schedule == PLATEAU else None
    checks = {math.ceil(steps * check / CHECKS) for check in range(1, CHECKS + 1)}
    for step in range(steps):
        batch = _batch(step, seed)
        loss = F.cross_entropy(network(digits.train[0][batch]), digits.train[1][batch])
        chosen.zero_grad()
        loss.backward()
        chosen.step()
        if scheduler is not None:
            scheduler.step()
        elif plateau is not None and step + 1 in checks:
            plateau.step(evaluate(network, digits.validation)["loss"])
    numbers: dict[str, float] = {"steps": steps}
    for name, part in (("validation", digits.validation), ("test", digits.test)):
        numbers |= {f"{name}_{what}": value for what, value in evaluate(network, part).items()}
    return numbers


def make_optimizer(name: str, network: nn.Module, lr: float) -> Optimizer:
    """SGD with momentum, or Adam.

    Args:
        name: `sgd` or `adam`.
        network: Whose parameters.
        lr: The base rate.

    Example:
        >>> make_optimizer("sgd", nn.Linear(1, 1), 0.1).defaults["momentum"]
        0.9
    """
    if name == "sgd":
        return SGD(network.parameters(), lr=lr, momentum=MOMENTUM, weight_decay=WEIGHT_DECAY)
    return Adam(network.parameters(), lr=lr)


@torch.no_grad()
def evaluate(network: nn.Module, part: tuple[Tensor, Tensor]) -> dict[str, float]:
    """Error in percent and mean cross-entropy in nats; both are NaN where the network gives something not finite.

    Args:
        network: In training mode, and left so.
        part: Pixels and targets.
    """
    network.eval()
    logits = network(part[0])
    network.train()
    if not bool(logits.isfinite().all()):
        return {"error": math.nan, "loss": math.nan}
    error = 100.0 * (logits.argmax(dim=1) != part[1]).double().mean()
    return {"error": float(error), "loss": float(F.cross_entropy(logits, part[1]))}


_orders: dict[tuple[int, int], list[Tensor]] = {}


def _batch(step: int, seed: int) -> Any:
    epoch, position = divmod(step, STEPS_PER_EPOCH)
    if (seed, epoch) not in _orders:
        order = torch.randperm(TRAIN, generator=seeded_generator("budget study", seed, epoch))
        _orders[seed, epoch] = list(order[: STEPS_PER_EPOCH * BATCH].split(BATCH))
    return _orders[seed, epoch][position]
