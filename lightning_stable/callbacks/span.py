# SPDX-License-Identifier: Apache-2.0
"""How many optimizer steps a part of a run has: the part is given in steps, in epochs, or as a fraction."""

import math
from typing import Any, NamedTuple

from lightning.pytorch import Trainer

from lightning_stable._lightning.trainer import optimizer_steps_of_the_run


class Span(NamedTuple):
    """The beginning of a run, up to a number of optimizer steps as `trainer.global_step` counts them.

    Args:
        steps: In optimizer steps.
        epochs: In epochs, if `steps` is `None`.
        fraction: Of the whole run, if both are `None`.

    Example:
        >>> Span(steps=100, epochs=None, fraction=0.5)
        Span(steps=100, epochs=None, fraction=0.5)
    """

    steps: int | None
    epochs: float | None
    fraction: float

    def check(self, call: str) -> None:
        """Refuse what is no part of a run, in the words of `call`."""
        if self.steps is not None and self.epochs is not None:
            raise ValueError(
                f"`{call}(steps=...)` must be None if `epochs` is given ({self.epochs}), got {self.steps}."
            )
        if self.steps is not None and not (
            _is_number(self.steps) and self.steps >= 0 and self.steps == int(self.steps)
        ):
            raise ValueError(f"`{call}(steps=...)` must be a whole number of at least 0, got {self.steps!r}.")
        if self.epochs is not None and not (_is_number(self.epochs) and 0 <= self.epochs < math.inf):
            raise ValueError(f"`{call}(epochs=...)` must be at least 0 and finite, got {self.epochs!r}.")
        if not (_is_number(self.fraction) and 0 <= self.fraction <= 1):
            raise ValueError(f"`{call}(fraction=...)` must be in [0, 1], got {self.fraction!r}.")

    def in_steps(self, call: str, trainer: Trainer) -> int:
        """How many optimizer steps it is in this run.

        Args:
            call: Who asks, for the error message.
            trainer: The trainer in its `fit`.

        Raises:
            ValueError: If nobody knows how long an epoch or the run is.
        """
        if self.steps is not None:
            return self.steps
        if self.epochs is not None:
            batches = trainer.num_training_batches
            if not math.isfinite(batches):
                raise ValueError(
                    f"`{call}(epochs={self.epochs})` needs to know how many batches an epoch has, and the training "
                    f"data does not say. Use `{call}(steps=...)`, or `Trainer(limit_train_batches=...)`."
                )
            return round(self.epochs * math.ceil(batches / trainer.accumulate_grad_batches))
        steps = optimizer_steps_of_the_run(trainer)
        if not 0 <= steps < math.inf:
            raise ValueError(
                f"`{call}(fraction={self.fraction:g})` needs to know how long the run is. Use `{call}(steps=...)`, or "
                "set `Trainer(max_steps=...)` or `max_epochs`."
            )
        return round(self.fraction * steps)


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
