# SPDX-License-Identifier: Apache-2.0
"""How far a run is on its way through its first part: that is given in steps, in epochs, or as a fraction."""

import math
from typing import Any, NamedTuple

from lightning.pytorch import Trainer

from lightning_stable._lightning.accumulation import counts_windows
from lightning_stable._lightning.progress import batches_completed


class Place(NamedTuple):
    """Where a run is in a part of it.

    Args:
        done: Steps so far.
        length: How many the part has.

    Example:
        >>> Place(3, 4).is_over, Place(3, 4).share, Place(5, 4).share
        (False, 0.75, 1.0)
    """

    done: int
    length: int

    @property
    def is_over(self) -> bool:
        """Whether the part is done."""
        return self.done >= self.length

    @property
    def share(self) -> float:
        """How much of it is done, from 0 to 1."""
        return 1.0 if self.is_over else self.done / self.length


class Span(NamedTuple):
    """The beginning of a run.

    Its clock is what bounds it: optimizer steps, as `trainer.global_step` counts them, for `steps` and for a fraction
    of `Trainer(max_steps=...)`. For `epochs`, and for a fraction of `max_epochs`, it is the place in the data, since
    steps may be of more and more batches, or several of one: epochs, and in an epoch those of the steps that it is
    cut into now. While `AdaptiveBatchSize` cuts it, that are single batches. A fraction of a run that is bound by both
    goes by what is further.

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

    def place(self, call: str, trainer: Trainer) -> Place:
        """Where the run is in it.

        Args:
            call: Who asks, for the error message.
            trainer: The trainer in its `fit`.

        Raises:
            ValueError: If nobody knows how long an epoch or the run is.
        """
        if self.steps is not None:
            return Place(trainer.global_step, int(self.steps))
        is_known = math.isfinite(trainer.num_training_batches)
        if self.epochs is not None:
            if not is_known:
                raise ValueError(
                    f"`{call}(epochs={self.epochs})` needs to know how many batches an epoch has, and the training "
                    f"data does not say. Use `{call}(steps=...)`, or `Trainer(limit_train_batches=...)`."
                )
            return _in_the_data(trainer, self.epochs)
        places = []
        if trainer.max_steps >= 0:
            places.append(Place(trainer.global_step, round(self.fraction * trainer.max_steps)))
        if is_known and trainer.max_epochs is not None and trainer.max_epochs >= 0:
            places.append(_in_the_data(trainer, self.fraction * trainer.max_epochs))
        if not places:
            raise ValueError(
                f"`{call}(fraction={self.fraction:g})` needs to know how long the run is. Use `{call}(steps=...)`, or "
                "set `Trainer(max_steps=...)` or `max_epochs`."
            )
        return max(places, key=lambda place: place.share)


def _in_the_data(trainer: Trainer, epochs: float) -> Place:
    window = 1 if counts_windows(trainer) else trainer.accumulate_grad_batches
    of_an_epoch = math.ceil(trainer.num_training_batches / window)
    done = trainer.current_epoch * of_an_epoch + batches_completed(trainer) // window
    return Place(done, round(epochs * of_an_epoch))


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
