# SPDX-License-Identifier: Apache-2.0
"""How large the batch is, and when it grows."""

import math
from dataclasses import dataclass, field
from typing import Any, Literal

from lightning_stable.functional.gradient_noise import BatchTest, GradientNoise, required_batch
from lightning_stable.schedules.scaling_rules import scale_lr

FEWEST_MEASUREMENTS = 5  # before the batch, which never shrinks, may grow


@dataclass
class BatchGrowth:
    """The batch as a multiple of the first one, and what is known of the noise that asks for more.

        batch = first batch * accumulation * loader        both whole numbers that never shrink
        mean of measurements x_1 .. x_n:   sum_i d^(n - i) x_i / sum_i d^(n - i),   d = smoothing

    Variance and squared mean are averaged each for itself: their ratio has no mean, theirs are what they estimate.

    Args:
        test: As in `required_batch`.
        eta: As in `required_batch`.
        theta: As in `required_batch`.
        nu: As in `required_batch`.
        smoothing: d.
        max_growth: How many times as large the batch may be after one measurement.
        max_batch_size: Samples per optimizer step, over all ranks.
        max_accumulation: Micro-batches per optimizer step.
        max_loader_batch_size: Of the loader; `None` leaves it as it is.
        first_accumulation: Micro-batches per step that the run began with.
        first_loader_batch_size: Of the loader, where it may grow.
        first_epoch_batches: Batches in an epoch with the first loader; 0 where nobody knows.
        accumulation: How many times as many micro-batches there are now.
        loader: How many times as large the loader's batch is now.
        samples: Of a micro-batch on one rank, the rounded mean over the measurements; 0 before.
        wanted: Samples per step that the last measurement asks for, as far as growth is allowed.
        measurements: How many there were.
        sums: Of the weights, of the weighted measurements and of the weighted samples.

    Example:
        >>> growth = BatchGrowth(max_accumulation=64, smoothing=0.0)
        >>> for _ in range(5):
        ...     growth.measured(GradientNoise(variance=0.08, along=0.0, mean_square=1.0), samples=4, ranks=1)
        >>> growth.accumulation, growth.batch_size(ranks=1)
        (2, 8)
    """

    test: BatchTest = "norm"
    eta: float = 0.1
    theta: float = 0.1
    nu: float = 0.1
    smoothing: float = 0.9
    max_growth: float = 2.0
    max_batch_size: int | None = None
    max_accumulation: int = 32
    max_loader_batch_size: int | None = None
    first_accumulation: int = 1
    first_loader_batch_size: int = 0
    first_epoch_batches: int = 0
    accumulation: int = 1
    loader: int = 1
    samples: int = 0
    wanted: float = 0.0
    measurements: int = 0
    sums: list[float] = field(default_factory=lambda: [0.0] * 5)

    _STATE = (
        "first_accumulation", "first_loader_batch_size", "first_epoch_batches", "accumulation", "loader", "samples",
        "wanted", "measurements",
    )  # fmt: skip

    @property
    def noise(self) -> GradientNoise:
        """What the measurements so far come to; NaN before the first."""
        weight, *sums, _ = self.sums
        return GradientNoise(*(total / weight if weight else math.nan for total in sums))

    @property
    def length(self) -> int:
        """Micro-batches per optimizer step."""
        return self.first_accumulation * self.accumulation

    @property
    def largest_loader(self) -> int:
        """How many times as large the loader's batch may become."""
        if self.max_loader_batch_size is None:
            return 1
        return max(1, self.max_loader_batch_size // self.first_loader_batch_size)

    def batch_size(self, ranks: int) -> int:
        """Samples per optimizer step over all ranks; 0 before the first measurement."""
        return self.samples * self.length * ranks

    def required(self) -> float:
        """Samples per step that the test asks for, whatever is allowed."""
        return required_batch(self.noise, self.test, self.eta, self.theta, self.nu)

    def measured(self, noise: GradientNoise, samples: float, ranks: int) -> None:
        """Take a measurement with so many samples in a mean micro-batch, and grow if that is due."""
        new = (1.0, *noise, samples)
        self.sums = [self.smoothing * total + one for total, one in zip(self.sums, new, strict=True)]
        self.samples = max(1, round(self.sums[-1] / self.sums[0]))
        self.measurements += 1
        batch, required = self.batch_size(ranks), self.required()
        if self.measurements < FEWEST_MEASUREMENTS or not math.isfinite(required) or required <= batch:
            self.wanted = 0.0
            return
        first = self.samples * self.first_accumulation * ranks  # the least by which the batch can grow
        allowed = max(batch * self.max_growth, batch + first)
        multiple = int(min(math.ceil(required / first), allowed / first))
        if self.max_batch_size is not None:
            multiple = min(multiple, self.max_batch_size // first)
        self.wanted = min(required, allowed)
        self.accumulation = max(self.accumulation, min(multiple, self._largest_accumulation()))

    def grow_loader(self, ranks: int) -> int:
        """Between epochs: once accumulation has come to its end, the new size of the loader's batch; else 0."""
        batch = self.batch_size(ranks)
        exhausted = self.accumulation >= self._largest_accumulation()
        if self.max_loader_batch_size is None or not exhausted or not batch or self.wanted <= batch:
            return 0
        wanted = math.ceil(self.loader * self.wanted / batch)
        wanted = min(wanted, self.largest_loader)
        if self.max_batch_size is not None:
            wanted = min(wanted, self.loader * self.max_batch_size // batch)
        if wanted <= self.loader:
            return 0
        self.samples = self.samples * wanted // self.loader
        self.sums[-1] *= wanted / self.loader
        self.loader, self.wanted = wanted, 0.0
        return self.first_loader_batch_size * wanted

    def first_steps(self, batches: int, of: float, is_last: bool) -> int:
        """How many optimizer steps the first batch size would have made of `batches` of an epoch `of` so many.

        Once the loader has grown, they are the same share of an epoch; `limit_train_batches` may keep it as long.
        """
        if self.loader == 1:
            return -(-batches // self.first_accumulation)
        whole = -(-self.first_epoch_batches // self.first_accumulation)
        if is_last:
            return whole
        return min(whole, math.ceil(batches * self.first_epoch_batches / (of * self.first_accumulation)))

    def lr_scale(self, rule: Literal["linear", "sqrt"] | None) -> float:
        """The factor on the learning rate."""
        return 1.0 if rule is None else scale_lr(1.0, from_batch=1, to_batch=self.accumulation * self.loader, rule=rule)

    def _largest_accumulation(self) -> int:
        return max(1, self.max_accumulation // self.first_accumulation)

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run needs to know."""
        return {name: getattr(self, name) for name in self._STATE} | {"sums": list(self.sums)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Go on from `state_dict`."""
        for name in self._STATE:
            setattr(self, name, state_dict[name])
        self.sums = [float(total) for total in state_dict["sums"]]
