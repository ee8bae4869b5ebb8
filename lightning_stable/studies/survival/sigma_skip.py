# SPDX-License-Identifier: Apache-2.0
"""OLMo's rule: leave a step out when its loss or its gradient norm is six standard deviations above the mean."""

import math
import time
from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch import Tensor
from torch.optim import Optimizer

from lightning_stable.functional.tensor_norms import tensor_norms
from lightning_stable.optim import StepGate

_USER = "sigma_skip"
_FEWEST = 3  # two values before the present one have a standard deviation


class SigmaSkip(Callback):
    """Leaves a step out when it stands out from the last ones: the rule of OLMo's `SkipStepOptimizer`, faults included.

        over the last `window` losses L and gradient norms g, those that stood out among them, without the present one:
        ok  <=>  fewer than window / 2 values so far, or than 3, the present one included, or
                 L - mean <= sigmas std  and  g - mean <= sigmas std,      std with n - 1
        the step, its weight decay, its moments and its count are multiplied by 1 where ok, else by 0

    Paper: OLMo et al., "2 OLMo 2 Furious" (2025); the rule is OLMo-core's code.

    What follows from it is kept, since that is what is compared: what stood out enters the window and hides what comes
    after it; a NaN makes every comparison with it false, for as long as it is in the window; and 0 times NaN is NaN, so
    a step whose gradient is not finite is not left out but ruins the weights. Schedules and `global_step` run on. Our
    own `detectors.ZScore` in a `SpikeGuard` is the rule without these faults.

    Deviations: a step that is left out is not taken, where OLMo takes it multiplied by 0, to wait for no device.

    Args:
        window: Steps that are compared with.
        sigmas: Standard deviations above the mean that are let through.

    Example:
        >>> rule = SigmaSkip(window=4)
        >>> [rule.is_ok(loss, norm=1.0) for loss in (2.0, 2.1, 1.9, 9.0, 9.0)]
        [True, True, True, False, True]
    """

    def __init__(self, window: int = 128, sigmas: float = 6.0) -> None:
        super().__init__()
        self.window = window
        self.sigmas = sigmas
        self.steps_skipped = 0
        self.seconds_lost = 0.0
        self._losses: list[float] = []
        self._norms: list[float] = []
        self._loss: Tensor | None = None
        self._began = 0.0
        self._gate: StepGate | None = None

    def is_ok(self, loss: float, norm: float) -> bool:
        """Judge a step, and remember its numbers whatever they are."""
        self._losses = [*self._losses, loss][-self.window - 1 :]
        self._norms = [*self._norms, norm][-self.window - 1 :]
        if len(self._losses) < max(_FEWEST, self.window // 2):
            return True
        return self._is_near(self._losses) and self._is_near(self._norms)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stand in front of the optimizer's step."""
        self._gate = StepGate.attach(trainer.optimizers[0], user=_USER)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Note when the step begins."""
        self._began = time.perf_counter()

    def on_before_backward(self, trainer: Trainer, pl_module: LightningModule, loss: Tensor) -> None:
        """Take the loss."""
        self._loss = loss.detach()

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        """Judge the step."""
        assert self._gate is not None
        assert self._loss is not None
        gradients = [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]
        norm = float(tensor_norms(gradients).norm())
        ok = self.is_ok(float(self._loss), norm)
        self._gate.veto = not ok and math.isfinite(norm)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Count a step that was left out."""
        assert self._gate is not None
        if self._gate.veto:
            self.steps_skipped += 1
            self.seconds_lost += time.perf_counter() - self._began
        self._gate.veto = False

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave the optimizer as it was found."""
        if self._gate is not None:
            self._gate.detach(user=_USER)
            self._gate = None

    def _is_near(self, values: list[float]) -> bool:
        *before, present = values
        mean = sum(before) / len(before)
        squares = sum((value - mean) * (value - mean) for value in before)  # `**` raises where this is infinite
        return present - mean <= self.sigmas * math.sqrt(squares / (len(before) - 1))
