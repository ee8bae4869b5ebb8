# SPDX-License-Identifier: Apache-2.0
"""Short sequences at the beginning of a run, which is when long ones upset it."""

import math
from contextlib import ExitStack
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_stable._lightning.loggers import log_scalars, logging_step
from lightning_stable._lightning.trainer import log_every_n_steps
from lightning_stable._lightning.training_batches import change_training_batches
from lightning_stable.callbacks.span import Place, Span
from lightning_stable.functional.sequence_length import batch_sequence_length, reshape_sequences, truncate_sequences


class SequenceLengthWarmup(Callback):
    """Cuts the sequences of training batches: short at first, and longer step by step.

        step t = 0, 1, ..., as `trainer.global_step`; T = `steps`, or a part of `Trainer(max_steps=...)`;
            with `epochs`, or a part of `max_epochs`, t / T is how much of their data came before the step
        length_t = start + (end - start) * (t / T)^(1/d), rounded down to a multiple and at least `start`,  for t < T
        length_t = end                                                                                    from T on
        d = 1 (pacing="linear") or 2 (pacing="sqrt")

    Long sequences bring the extreme variances of gradients that make large language models diverge in the beginning.

    Paper: Li, Zhang and He, "The Stability-Efficiency Dilemma: Investigating Sequence Length Warmup for Training GPT
    Models" (NeurIPS 2022).

    Deviations: none for linear pacing and `mode="truncate"`; `"sqrt"` and `"reshape"` are DeepSpeed's. Where
    `"reshape"` cannot cut a batch into pieces of the length, it takes the next smaller one that divides the sequences,
    so that no token is lost.

    Everybody else sees batches as they are trained on: what counts tokens counts right. The paper's learning rate
    decays over tokens, too. Validation has full sequences. With `torch.compile` each length compiles the model again:
    let them grow by a large `multiple_of`.

    Logs `stability/sequence_length` every `Trainer(log_every_n_steps=...)` steps.

    Args:
        start: Positions at first. Default: the paper's for GPT-2 of 117M; for 1.5B it is 64.
        end: Positions in the end; `None` is all that a batch has.
        steps: T in optimizer steps. The paper takes the largest with which validation does not get worse early on.
        epochs: T in epochs, instead of `steps`.
        fraction: T as a part of the run, if neither is given. Default: that of MosaicML's Composer.
        multiple_of: Lengths on the way are multiples of it. Default: the paper's, for tensor cores.
        mode: `"truncate"` drops what is beyond the length. `"reshape"` makes it further samples of the batch.
        pacing: `"linear"`, or `"sqrt"`, which is longer sooner.
        keys: Places of the sequences in the batch, such as `["tokens", "targets"]` or `["0", "1"]`, for batches where
            the rule of `truncate_sequences` does not fit.

    Raises:
        ValueError: If an argument is out of its bounds; from `fit`, if a batch has no sequences, one cannot be cut into
            pieces, or nobody knows how long an epoch or the run is.
        RuntimeError: From `fit`, if `training_step` takes a `dataloader_iter`.

    Example:
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> warmup = SequenceLengthWarmup(start=64, end=1024, steps=20_000)
        >>> trainer = Trainer(callbacks=[warmup], accelerator="cpu", **quiet)
    """

    def __init__(
        self,
        start: int = 8,
        end: int | None = None,
        steps: int | None = None,
        epochs: float | None = None,
        fraction: float = 0.3,
        multiple_of: int = 8,
        mode: Literal["truncate", "reshape"] = "truncate",
        pacing: Literal["linear", "sqrt"] = "linear",
        keys: list[str] | None = None,
    ) -> None:
        super().__init__()
        _check(start, end, multiple_of, mode, pacing, keys)
        self.span = Span(steps, epochs, fraction)
        self.span.check("SequenceLengthWarmup")
        self.start = start
        self.end = end
        self.multiple_of = multiple_of
        self.mode: Literal["truncate", "reshape"] = mode
        self.pacing: Literal["linear", "sqrt"] = pacing
        self.keys = None if keys is None else list(keys)
        self._length = 0
        self._undo: ExitStack | None = None

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Stand where batches come from."""
        self.span.place("SequenceLengthWarmup", trainer)  # must be known
        self._undo = ExitStack()
        change_training_batches(self._undo, trainer, "SequenceLengthWarmup", lambda batch: self._cut(trainer, batch))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the length of the batch."""
        every = log_every_n_steps(trainer)
        if every > 0 and (logging_step(trainer) + 1) % every == 0:
            log_scalars(trainer, {"stability/sequence_length": self._length})

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Let batches through as they are."""
        self._leave()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Let batches through as they are."""
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Let batches through as they are."""
        self._leave()

    def _cut(self, trainer: Trainer, batch: Any) -> Any:
        try:
            return self._shortened(trainer, batch)
        except ValueError as error:
            raise ValueError(f"`SequenceLengthWarmup` cannot cut a batch. {error}") from None

    def _shortened(self, trainer: Trainer, batch: Any) -> Any:
        full = batch_sequence_length(batch, self.keys)
        place = self.span.place("SequenceLengthWarmup", trainer)
        self._length = length = min(full, self._length_at(place, self.end or full))
        if length == full:
            return batch
        if self.mode == "truncate":
            return truncate_sequences(batch, length, self.keys)
        self._length = self._piece(length, full)
        return reshape_sequences(batch, self._length, self.keys)

    def _length_at(self, place: Place, end: int) -> int:
        if place.is_over or self.start >= end:
            return end
        pace = place.share if self.pacing == "linear" else math.sqrt(place.share)
        length = math.floor(self.start + (end - self.start) * pace)
        return max(self.start, length - length % self.multiple_of)

    def _piece(self, length: int, full: int) -> int:
        """The longest piece up to `length` that sequences can be cut into."""
        fit = [piece for piece in range(1, length + 1) if full % piece == 0 and piece % self.multiple_of == 0]
        if not fit:
            raise ValueError(
                f"`multiple_of={self.multiple_of}` leaves no piece of up to {length} positions "
                f'that divides sequences of {full}. Choose another `multiple_of`, or `mode="truncate"`.'
            )
        return fit[-1]

    def _leave(self) -> None:
        if self._undo is not None:
            self._undo.close()
            self._undo = None


def _check(start: int, end: int | None, multiple_of: int, mode: str, pacing: str, keys: list[str] | None) -> None:
    call = "SequenceLengthWarmup"
    for name, value in (("start", start), ("end", end), ("multiple_of", multiple_of)):
        good = isinstance(value, int) and not isinstance(value, bool) and value >= 1
        if not good and not (name == "end" and value is None):
            raise ValueError(f"`{call}({name}=...)` must be a whole number of at least 1, got {value!r}.")
    if end is not None and end < start:
        raise ValueError(f"`{call}(end=...)` must be at least `start` ({start}), got {end}.")
    if mode not in ("truncate", "reshape"):
        raise ValueError(f'`{call}(mode=...)` must be "truncate" or "reshape", got {mode!r}.')
    if pacing not in ("linear", "sqrt"):
        raise ValueError(f'`{call}(pacing=...)` must be "linear" or "sqrt", got {pacing!r}.')
    if keys is not None and not keys:
        raise ValueError(f"`{call}(keys=...)` must name at least one place in the batch, got [].")
