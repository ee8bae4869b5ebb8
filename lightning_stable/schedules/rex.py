# SPDX-License-Identifier: Apache-2.0
"""The REX learning-rate schedule, with a linear warmup."""

import warnings

import torch
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

from lightning_stable.functional.rex import rex


class REXLR(LRScheduler):
    """Holds the learning rate high for longer than cosine or linear decay do, then drops it steeply.

        step s < warmup_steps:   lr = base * (s + 1) / warmup_steps
        afterwards:              lr = base * (min_ratio + (1 - min_ratio) * z / ((1 - beta) + beta * z))
                                 z = 1 - (s - warmup_steps) / (total_steps - warmup_steps), not below 0

    Paper: Chen, Wolfe and Kyrillidis, "REX: Revisiting Budgeted Training with an Improved Schedule" (MLSys 2022).

    Deviations: warmup, `beta` and `min_ratio` are ours; with their defaults the schedule is the paper's. After
    `total_steps` the rate stays at `base * min_ratio` (the authors' code starts over). The rate is a function of
    `last_epoch` and the base rates alone, so nothing that happens to a group's `lr` in between can make it drift.

    Each group keeps its own base rate. A group added to the optimizer later has the `lr` it came with as its base rate
    and follows the schedule from the next `step()` on. A checkpoint carries its `total_steps`; to lengthen a resumed
    run, set `scheduler.total_steps` after loading.

    Args:
        optimizer: The optimizer whose groups' `lr` are the base rates.
        total_steps: Length of the run in optimizer steps, warmup included. `None`: to be set later by
            `scheduler.total_steps = n`, before the warmup is over.
        warmup_steps: Length of the warmup in optimizer steps; its last step runs at the base rate.
        beta: How long the plateau is, in [0, 1). Default: the paper's 0.5.
        min_ratio: The rate at the end, as a fraction of the base rate.
        last_epoch: Steps already done, minus one; torch's convention.

    Raises:
        ValueError: If an argument is out of its bounds, or the warmup is not shorter than the run.
        RuntimeError: If `step()` leaves the warmup while `total_steps` is unknown.

    Example:
        >>> optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], lr=1.0)
        >>> scheduler = REXLR(optimizer, total_steps=6, warmup_steps=2)
        >>> rates = []
        >>> for _ in range(7):
        ...     rates.append(round(scheduler.get_last_lr()[0], 3))
        ...     optimizer.step()
        ...     scheduler.step()
        >>> rates
        [0.5, 1.0, 1.0, 0.857, 0.667, 0.4, 0.0]
    """

    def __init__(
        self,
        optimizer: Optimizer,
        total_steps: int | None = None,
        warmup_steps: int = 0,
        beta: float = 0.5,
        min_ratio: float = 0.0,
        last_epoch: int = -1,
    ) -> None:
        if warmup_steps < 0:
            raise ValueError(f"`REXLR(warmup_steps=...)` must be at least 0, got {warmup_steps}.")
        if not 0.0 <= beta < 1.0:
            raise ValueError(f"`REXLR(beta=...)` must be in [0, 1), got {beta}.")
        if not 0.0 <= min_ratio <= 1.0:
            raise ValueError(f"`REXLR(min_ratio=...)` must be in [0, 1], got {min_ratio}.")
        if total_steps is not None and warmup_steps >= _checked(total_steps):
            raise ValueError(
                f"`REXLR(warmup_steps=...)` must be less than `total_steps` ({total_steps}), got {warmup_steps}."
            )
        self._total_steps = total_steps
        self.warmup_steps = warmup_steps
        self.beta = beta
        self.min_ratio = min_ratio
        super().__init__(optimizer, last_epoch)

    @property
    def total_steps(self) -> int | None:
        """Length of the run in optimizer steps, warmup included; `None` while unknown."""
        return self._total_steps

    @total_steps.setter
    def total_steps(self, total_steps: int) -> None:
        self._total_steps = _checked(total_steps)
        if self.warmup_steps >= total_steps:
            warnings.warn(
                f"`REXLR(warmup_steps={self.warmup_steps})` with `total_steps` set to {total_steps}: the run ends "
                "inside the warmup. Train longer or warm up for fewer steps.",
                UserWarning,
                stacklevel=2,
            )

    def step(self, epoch: int | None = None) -> None:
        """Set every group's rate for the next optimizer step."""
        self._factor(self.last_epoch + 1 if epoch is None else epoch)  # raises while `last_epoch` is still untouched
        super().step(epoch)

    def get_lr(self) -> list[float | torch.Tensor]:
        """Every group's rate at `last_epoch`; it never looks at the current one."""
        self._adopt_new_groups()
        factor = self._factor(self.last_epoch)
        return [base * factor for base in self.base_lrs]

    _get_closed_form_lr = get_lr

    def _factor(self, step: int) -> float:
        if step < self.warmup_steps:
            return (step + 1) / self.warmup_steps
        since_warmup = step - self.warmup_steps
        if since_warmup == 0:
            return 1.0
        if self._total_steps is None:
            raise RuntimeError(
                f"`REXLR` does not know how long the run is and its warmup ended with step {step - 1}. Pass "
                "`REXLR(total_steps=...)`, or set `scheduler.total_steps = n` (in Lightning: "
                "`trainer.estimated_stepping_batches`) before training starts."
            )
        progress = since_warmup / max(self._total_steps - self.warmup_steps, 1)
        return self.min_ratio + (1.0 - self.min_ratio) * rex(progress, self.beta)

    def _adopt_new_groups(self) -> None:
        for group in self.optimizer.param_groups[len(self.base_lrs) :]:
            lr = group["lr"]
            group.setdefault("initial_lr", lr.clone() if isinstance(lr, torch.Tensor) else lr)
            self.base_lrs = [*self.base_lrs, group["initial_lr"]]


def _checked(total_steps: int) -> int:
    if not isinstance(total_steps, int) or total_steps < 1:
        raise ValueError(
            f"`REXLR(total_steps=...)` must be a whole number of at least 1, got {total_steps}. "
            "An endless run has no length: set `Trainer(max_steps=...)` or `max_epochs`."
        )
    return total_steps
