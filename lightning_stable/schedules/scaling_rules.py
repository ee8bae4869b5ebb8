# SPDX-License-Identifier: Apache-2.0
"""Carry a learning rate over to another optimizer or another batch size."""

import math
from typing import Literal, NamedTuple

from lightning_stable.schedules.arguments import require_one_of, require_within

# The two ends of the table of You et al.: untuned LAMB on BERT.
_SMALL_BATCH, _LARGE_BATCH = 512, 32768
_LARGE_BATCH_LR = 5e-3
_LARGE_BATCH_WARMUP = 1 / 5


class LionSettings(NamedTuple):
    """A learning rate and a weight decay for Lion.

    Args:
        lr: Learning rate.
        weight_decay: Decoupled weight decay, to be multiplied by the learning rate in each step.

    Example:
        >>> LionSettings(lr=1e-4, weight_decay=1.0)._asdict()
        {'lr': 0.0001, 'weight_decay': 1.0}
    """

    lr: float
    weight_decay: float


def lion_from_adamw(lr: float, weight_decay: float, factor: float = 10.0) -> LionSettings:
    """Turn AdamW's learning rate and weight decay into those of Lion.

        lr_Lion = lr / factor,    weight_decay_Lion = weight_decay * factor

    Each entry of Lion's update is 1 in size, larger than AdamW's, so the learning rate is smaller. What decays a
    weight in a step is the product of the two, and that stays as it is.

    Paper: Chen et al., "Symbolic Discovery of Optimization Algorithms" (NeurIPS 2023): 3 to 10 times.

    Deviations: none; a schedule's first, highest and last value all have to be divided by `factor`.

    Args:
        lr: Learning rate that suits AdamW.
        weight_decay: Weight decay that suits AdamW.
        factor: How much smaller Lion's learning rate is. Default: the cautious end of the paper's range; 3
            sometimes trains a little better.

    Returns:
        Lion's `lr` and `weight_decay`, also by these names.

    Raises:
        ValueError: If `lr` or `weight_decay` is negative, or `factor` is below 1.

    Example:
        >>> settings = lion_from_adamw(lr=2e-3, weight_decay=0.1)
        >>> settings.lr, settings.weight_decay
        (0.0002, 1.0)
    """
    require_within("lion_from_adamw", "lr", lr, "[0, inf)")
    require_within("lion_from_adamw", "weight_decay", weight_decay, "[0, inf)")
    require_within("lion_from_adamw", "factor", factor, "[1, inf)")
    return LionSettings(lr / factor, weight_decay * factor)


def lamb_lr(batch: int) -> float:
    """Return the learning rate with which LAMB trains BERT at a batch size, without tuning.

        lr = 5e-3 / sqrt(2)^log2(32768 / batch)

    that is 5e-3 sqrt(batch / 32768). Check at both ends of the paper's table: 512 is 6 halvings of 32768 and
    sqrt(2)^6 = 2^3, so lr = 5 / (2^3 * 10^3) = 6.25e-4; at 32768 the exponent is 0 and lr = 5 / (2^0 * 10^3) = 5e-3.

    Paper: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes" (ICLR 2020).

    Deviations: the table goes from 512 to 32768; the formula goes on beyond it.

    Args:
        batch: Samples per optimizer step, over all ranks and micro-batches.

    Raises:
        ValueError: If `batch` is below 1.

    Example:
        >>> [round(lamb_lr(batch), 6) for batch in (512, 2048, 32768)]
        [0.000625, 0.00125, 0.005]
    """
    require_within("lamb_lr", "batch", batch, "[1, inf)")
    return _LARGE_BATCH_LR * math.sqrt(batch / _LARGE_BATCH)


def lamb_warmup(batch: int) -> float:
    """Return the share of the run in which LAMB's learning rate rises.

        warmup = 1/320 * batch / 512,    at most 1/5

    It doubles with the batch, so that the warm-up takes the same number of samples: 1/320 at 512, 6 doublings later
    64/320 = 1/5 at 32768.

    Paper: You et al., "Large Batch Optimization for Deep Learning: Training BERT in 76 minutes" (ICLR 2020).

    Deviations: the paper's table ends at 32768; above it the share stays 1/5.

    Args:
        batch: Samples per optimizer step, over all ranks and micro-batches.

    Raises:
        ValueError: If `batch` is below 1.

    Example:
        >>> [lamb_warmup(batch) for batch in (512, 1024, 32768)]
        [0.003125, 0.00625, 0.2]
    """
    require_within("lamb_warmup", "batch", batch, "[1, inf)")
    return min(batch / _SMALL_BATCH / 320, _LARGE_BATCH_WARMUP)


def scale_lr(lr: float, from_batch: int, to_batch: int, rule: Literal["linear", "sqrt"] = "linear") -> float:
    """Carry a learning rate that suits one batch size over to another.

        linear:  lr * to_batch / from_batch          the same path of SGD in expectation: k small steps as one
        sqrt:    lr * sqrt(to_batch / from_batch)    the same covariance of SGD's updates; also used for Adam

    Paper: Goyal et al., "Accurate, Large Minibatch SGD: Training ImageNet in 1 Hour" (2017), linear, with a warm-up
    and up to a batch of 8192; Krizhevsky, "One weird trick for parallelizing convolutional neural networks" (2014)
    and Hoffer, Hubara and Soudry, "Train longer, generalize better" (NeurIPS 2017), square root.

    Deviations: none; the warm-up is a schedule's affair.

    Args:
        lr: Learning rate that suits `from_batch`.
        from_batch: Samples per optimizer step, over all ranks and micro-batches, so far.
        to_batch: The same, from now on.
        rule: Which of the two. Default: the rule for SGD with momentum.

    Raises:
        ValueError: If `lr` is negative, a batch is below 1 or `rule` is unknown.

    Example:
        >>> scale_lr(0.1, from_batch=256, to_batch=1024), scale_lr(0.1, 256, 1024, rule="sqrt")
        (0.4, 0.2)
    """
    require_within("scale_lr", "lr", lr, "[0, inf)")
    require_within("scale_lr", "from_batch", from_batch, "[1, inf)")
    require_within("scale_lr", "to_batch", to_batch, "[1, inf)")
    require_one_of("scale_lr", "rule", rule, ("linear", "sqrt"))
    ratio = to_batch / from_batch
    return lr * (ratio if rule == "linear" else math.sqrt(ratio))
