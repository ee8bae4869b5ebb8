# SPDX-License-Identifier: Apache-2.0
"""Dropout in a part of the run only: early, against underfitting, or late, against overfitting."""

import math
from collections.abc import Mapping
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_stable._lightning.loggers import log_scalars, logging_step
from lightning_stable._lightning.trainer import log_every_n_steps
from lightning_stable.callbacks.dropout_rates import ATTRIBUTES, DropoutRate, dropout_rates
from lightning_stable.callbacks.span import Place, Span


class DropoutSchedule(Callback):
    """Multiplies every dropout rate of the model by a factor that depends on the place in the run.

        step t = 0, 1, ..., as `trainer.global_step`; T = `steps`, or a part of `Trainer(max_steps=...)`;
            with `epochs`, or a part of `max_epochs`, t / T is how much of their data came before the step
        rate_t = factor_t * rate, each module with a rate of its own
        early:     factor_t = 1 - t / T  (shape="constant": 1)  for t < T, and 0 from T on
        late:      factor_t = 0                                 for t < T, and 1 from T on
        standard:  factor_t = 1

    Early dropout makes the gradients of mini-batches point in more similar directions while the model still moves
    fast, and helps models that underfit. Late dropout is for those that overfit.

    Paper: Liu et al., "Dropout Reduces Underfitting" (ICML 2023).

    Deviations: none, but the paper has either dropout or stochastic depth in a model, not both: schedule one of them
    with `attributes`. With `torch.compile` every new rate compiles the model again: give it a few `levels`.

    A rate is an attribute named in `attributes` that is a number from 0 to 1: of torch's dropouts, attention and
    recurrent layers, of timm's DropPath, torchvision's StochasticDepth, and of modules that hand a number to
    `F.dropout` or `F.scaled_dot_product_attention`. An attribute `p` counts only where the class's name tells of
    dropout. Rates matter to modules in training mode alone, so validation is as ever. At the end of `fit`, however it
    ends, every module has its own rate back. Checkpoints hold these rates: they go before those a model is made with.

    Logs `stability/dropout_scale`, the factor, every `Trainer(log_every_n_steps=...)` steps.

    Args:
        mode: `"early"`, `"late"` or `"standard"`, which changes nothing.
        steps: T in optimizer steps.
        epochs: T in epochs, instead of `steps`.
        fraction: T as a part of the run, if neither is given. Default: the paper's 50 of 300 epochs.
        shape: Of early dropout, `"linear"` or `"constant"`. Default: the paper's.
        levels: How many rates above 0 a linear decrease goes through, each held as long as the others; 0 for a new one
            in every step.
        attributes: Names of the attributes that are rates. Default: p, drop_prob, dropout, dropout_p, dropout_prob,
            attn_dropout and attention_dropout.

    Raises:
        ValueError: If an argument is out of its bounds; from `fit`, if the model has no dropout, or nobody knows how
            long an epoch or the run is.

    Example:
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(callbacks=[DropoutSchedule("early", epochs=50)], accelerator="cpu", **quiet)
    """

    def __init__(
        self,
        mode: Literal["early", "late", "standard"] = "early",
        steps: int | None = None,
        epochs: float | None = None,
        fraction: float = 1 / 6,
        shape: Literal["linear", "constant"] = "linear",
        levels: int = 0,
        attributes: list[str] | None = None,
    ) -> None:
        super().__init__()
        self.span = Span(steps, epochs, fraction)
        self.span.check("DropoutSchedule")
        _check(mode, shape, levels, attributes)
        self.mode: Literal["early", "late", "standard"] = mode
        self.shape: Literal["linear", "constant"] = shape
        self.levels = levels
        self.attributes = list(ATTRIBUTES if attributes is None else attributes)
        self._rates: dict[str, float] = {}  # the modules' own, by name
        self._scheduled: list[DropoutRate] = []
        self._factor = 1.0

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Forget the last model; a checkpoint is loaded after this."""
        if stage == "fit":
            self._rates = {}

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Find the rates, and how long they change."""
        if self.mode == "standard":
            return
        self.span.place("DropoutSchedule", trainer)  # must be known
        found = list(dropout_rates(pl_module, self.attributes))
        if not found:
            raise ValueError(
                f"`DropoutSchedule` finds no dropout in {type(pl_module).__name__}: no module has a rate called "
                f"{', '.join(map(repr, self.attributes))}. Name the attribute that holds it in "
                "`DropoutSchedule(attributes=[...])`."
            )
        self._rates = {rate.name: self._rates.get(rate.name, rate.value) for rate in found}
        self._scheduled = found

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Set the rates of the step that this batch belongs to."""
        if not self._scheduled:
            return
        self._factor = self._factor_at(self.span.place("DropoutSchedule", trainer))
        for rate in self._scheduled:
            rate.set(self._factor * self._rates[rate.name])

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the factor of the step."""
        every = log_every_n_steps(trainer)
        if self._scheduled and every > 0 and (logging_step(trainer) + 1) % every == 0:
            log_scalars(trainer, {"stability/dropout_scale": self._factor})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Give every module its own rate back."""
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Give every module its own rate back."""
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Give every module its own rate back."""
        self._leave()

    def state_dict(self) -> dict[str, Any]:
        """The modules' own rates, which no checkpoint of a model holds."""
        return {"rates": dict(self._rates)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take up the rates of a checkpoint, or of where a rollback in mid-run went back to."""
        rates = state_dict["rates"]
        good = isinstance(rates, Mapping) and all(isinstance(rate, float) and 0 <= rate <= 1 for rate in rates.values())
        if not good:
            raise ValueError(f"The checkpoint of `DropoutSchedule` must hold rates from 0 to 1 by name, got {rates!r}.")
        self._rates = {**self._rates, **rates}

    def _factor_at(self, place: Place) -> float:
        if self.mode == "late":
            return float(place.is_over)
        if place.is_over:
            return 0.0
        if self.shape == "constant":
            return 1.0
        if self.levels:
            return math.ceil(self.levels * (place.length - place.done) / place.length) / self.levels
        return 1.0 - place.share

    def _leave(self) -> None:
        for rate in self._scheduled:
            rate.set(self._rates[rate.name])
        self._scheduled = []


def _check(mode: str, shape: str, levels: int, attributes: list[str] | None) -> None:
    if mode not in ("early", "late", "standard"):
        raise ValueError(f'`DropoutSchedule(mode=...)` must be "early", "late" or "standard", got {mode!r}.')
    if shape not in ("linear", "constant"):
        raise ValueError(f'`DropoutSchedule(shape=...)` must be "linear" or "constant", got {shape!r}.')
    if not isinstance(levels, int) or isinstance(levels, bool) or levels < 0:
        raise ValueError(f"`DropoutSchedule(levels=...)` must be a whole number of at least 0, got {levels!r}.")
    if attributes is not None and not attributes:
        raise ValueError("`DropoutSchedule(attributes=...)` must name at least one attribute, got [].")
