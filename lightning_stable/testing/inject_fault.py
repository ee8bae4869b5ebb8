# SPDX-License-Identifier: Apache-2.0
"""One fault, put into a running fit on purpose."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from typing import Any, Literal

from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_stable._lightning import data_fetcher, progress
from lightning_stable._lightning.loggers import logging_step
from lightning_stable._lightning.ranks import of_all_ranks
from lightning_stable.functional.fingerprint import fingerprint
from lightning_stable.optim.step_gate import StepGate
from lightning_stable.testing.fault_arguments import require_arguments
from lightning_stable.testing.fault_targets import target_module, target_parameters
from lightning_stable.testing.faults import FAULT_KINDS, Site, require_scaler
from lightning_stable.testing.fired_fault import FiredFault

_KEY = "lightning_stable.testing.InjectFault"


class InjectFault(Callback):
    """Puts one fault into a running fit, at a step of your choice, so that a test can see the run survive it.

    | kind | what happens to the first batch of the step |
    | --- | --- |
    | `nan_loss`, `huge_loss` | its loss is NaN, or `factor` times as large, for backward and for all that look at it |
    | `nan_gradient`, `inf_gradient`, `huge_gradient` | so are the gradients it adds, of all parameters or of `target` |
    | `nan_activation`, `huge_activation` | so is what the module `target` returns; default: the first with parameters |
    | `nan_data` | its floating-point tensors are NaN, all or those at `target` |
    | `label_noise` | its integer tensors, all or those at `target`, are shuffled, or replaced (`how`) |
    | `dead_loss_scale` | before it the gradient scaler's scale is set to `factor`: gradients in 16 bits become 0 |
    | `lr_drift` | from this step on the learning rate is multiplied by `factor` once more in every step |
    | `kill`, `terminate` | before it the process gets SIGKILL, or SIGTERM |
    | `wiped_optimizer` | of the first resume at `step` or later: the optimizers' state is gone (`how`) |

    A step is what one optimizer step is made of: one batch, or `accumulate_grad_batches` of them; under manual
    optimization every batch. A fault in the data comes back whenever the same batch, to the last bit, is trained on
    again: in a replay, in the next epoch, after a resume. Any other fault is transient and fires once, also after a
    rollback, and after a resume from a checkpoint that was written later; what is killed and resumed from an earlier
    checkpoint is killed again, so leave `kill` out of the second run.

    The place in the list of callbacks does not matter: the fault is there before any callback looks at loss or
    gradients. Nothing is hooked or replaced but in the batch that is hit; a run in which the fault does not come is
    the run without it, to the bit. The global random numbers are never used. A guard that undoes a step does not undo
    that it was hit: checkpoints hold what has fired, the guard does not see it.

    Args:
        kind: One of the above.
        step: From 0. Of a transient fault, the steps that were tried so far, vetoed and replayed ones included: the
            loggers' x axis, and `Incident.step`. Of a fault in the data, the steps whose batches came from the
            loader, replays not counted. As long as nothing is undone both are `global_step`.
        rank: The global rank that is hit; None hits all. Gradients are hit before ranks share them; of parameters
            that are shards the rank's own shard is hit.
        target: The name of a parameter or a module, or a place in the batch (`"targets"`, `"1"`, `"views.0"`). What
            `torch.compile` has made is one module.
        factor: Finite, larger than 0. Default: 1e4; 2^-40 for `dead_loss_scale`, 1.2 for `lr_drift`, 1e3 for
            `wiped_optimizer`.
        how: `shuffle` or `replace` for `label_noise`; for `wiped_optimizer` `empty`, `zero_second` (second moments are
            0, the count of steps goes on) or `scale` (all moments times `factor`). Default: the first.
        repeat: Whether the fault is in the data. Default: True for `nan_data` and `label_noise`.
        seed: Of the noise in `label_noise`.

    Raises:
        ValueError: If an argument is out of its range, or not one of the kind's; from `fit`, if there is no `target`.
        RuntimeError: From `fit`, for `dead_loss_scale` without a GradScaler, and for faults of the batch if
            `training_step` takes a `dataloader_iter`.

    Example:
        >>> from lightning_stable.guard import SpikeGuard
        >>> InjectFault("huge_gradient", step=40, factor=1e6)
        InjectFault('huge_gradient', step=40, factor=1000000.0)
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> trainer = Trainer(callbacks=[SpikeGuard(), InjectFault("nan_loss", step=40)], accelerator="cpu", **quiet)
    """

    def __init__(
        self,
        kind: str,
        step: int,
        rank: int | None = None,
        target: str | None = None,
        factor: float | None = None,
        how: Literal["shuffle", "replace", "empty", "zero_second", "scale"] | None = None,
        repeat: bool | None = None,
        seed: int = 0,
    ) -> None:
        super().__init__()
        self._said = {
            "rank": rank,
            "target": target,
            "factor": factor,
            "how": how,
            "repeat": repeat,
            "seed": seed or None,
        }
        require_arguments(kind, step, **self._said)
        known = FAULT_KINDS[kind]
        self.kind = kind
        self.step = step
        self.rank = rank
        self.target = target
        self.factor = known.factor if factor is None else factor
        self.how = (known.ways[0] if known.ways else "") if how is None else how
        self.repeat = known.is_in_data if repeat is None else repeat
        self.seed = seed
        self._undo: ExitStack | None = None
        self._gates: list[StepGate] = []
        self._start_anew()

    def __repr__(self) -> str:
        said = "".join(f", {name}={value!r}" for name, value in self._said.items() if value is not None)
        return f"InjectFault({self.kind!r}, step={self.step}{said})"

    @property
    def state_key(self) -> str:
        """Faults that differ have keys that differ, so that one checkpoint holds them all."""
        return repr(self)

    @property
    def fired(self) -> list[FiredFault]:
        """Every time it came true so far, also those before a resume."""
        return list(self._fired)

    @property
    def is_loud(self) -> bool:
        """Whether a guard can be expected to see it: loss or gradient become non-finite or huge."""
        return FAULT_KINDS[self.kind].is_loud

    # Beginning and end

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Start anew; a checkpoint is loaded after this."""
        if stage != "fit":
            return
        self._start_anew()
        if self.kind == "dead_loss_scale":
            require_scaler(trainer)

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Refuse what cannot work, and wipe the optimizers of a resumed run."""
        hits = FAULT_KINDS[self.kind].hits
        if hits == "parameter":
            target_parameters(pl_module, self.target)
        elif hits == "module":
            target_module(pl_module, self.target)
        if (hits == "batch" or self.repeat) and data_fetcher.hands_out_iterators(trainer):
            raise RuntimeError(
                f"`{self!r}` needs a `training_step` that takes a batch; this one takes a `dataloader_iter`, and "
                'fetches for itself. Use a fault that is not in the data, such as "nan_loss".'
            )
        is_due = hits == "optimizer" and self._resumed and not self._fired and trainer.global_step >= self.step
        if is_due and self._is_on_this_rank(trainer):
            self._arm(trainer, pl_module, batch_idx=-1)
            self._disarm()

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Leave everything as it was found."""
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Leave everything as it was found."""
        self._leave()

    # One batch

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An epoch begins with a step of its own."""
        self._step_begins = True

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count, and put the fault in place if it is due."""
        self._disarm()  # the last batch may have been cut short
        begins, is_new = self._count(trainer)
        if self._is_on_this_rank(trainer) and self._is_due(begins, is_new, batch):
            self._arm(trainer, pl_module, batch_idx)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Take the fault away."""
        self._disarm()

    @contextmanager
    def around_repeated_batch(self, trainer: Trainer, pl_module: LightningModule, batch: Any) -> Iterator[None]:
        """When a guard runs a batch again to find what is wrong: bad data is bad again, anything else is over."""
        self._disarm()
        comes_again = self.repeat and self._fingerprint is not None and self._is_on_this_rank(trainer)
        if comes_again and fingerprint(batch) == self._fingerprint:
            fired = list(self._fired)
            self._arm(trainer, pl_module, batch_idx=-1)
            try:
                yield
            finally:
                self._disarm()
                self._fired = fired  # the run itself was hit no more often for it
        else:
            yield

    # The checkpoint. There is no `state_dict`, which a guard would put back together with the step it undoes

    def on_save_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Write down what has fired on each rank, and where in the data and in time the run is."""
        own = {
            "tried": self._tried,
            "taken": self._taken,
            "position": self._position,
            "fingerprint": self._fingerprint,
            "fired": [fault.to_json() for fault in self._fired],
        }
        checkpoint.setdefault(_KEY, {})[self.state_key] = of_all_ranks(trainer, own)

    def on_load_checkpoint(self, trainer: Trainer, pl_module: LightningModule, checkpoint: dict[str, Any]) -> None:
        """Count on; a checkpoint that does not know this fault leaves the counting to Lightning's own numbers."""
        self._resumed = True
        states = checkpoint.get(_KEY, {}).get(self.state_key)
        if states is not None:
            state = states[trainer.global_rank % len(states)]
            self._tried, self._taken, self._position = state["tried"], state["taken"], state["position"]
            self._fingerprint = state["fingerprint"]
            self._fired = [FiredFault(**fields) for fields in state["fired"]]

    # What the hooks are made of

    def _start_anew(self) -> None:
        self._tried: int | None = None  # steps begun, replays included; None until the first batch
        self._taken = 0  # steps begun with batches from the loader
        self._position = 0  # batches from the loader
        self._fingerprint: str | None = None
        self._fired: list[FiredFault] = []
        self._step_begins = True
        self._resumed = False

    def _count(self, trainer: Trainer) -> tuple[bool, bool]:
        """Whether this batch begins a step, and whether it comes from the loader: Lightning counts replays again."""
        position = progress.batches_begun(trainer)
        if self._tried is None:
            self._tried = self._taken = logging_step(trainer)
            self._position = position - 1
        begins, self._step_begins = self._step_begins, not progress.is_accumulating(trainer)
        is_new = position > self._position
        self._position = max(position, self._position)
        self._tried += begins
        self._taken += begins and is_new
        return begins, is_new

    def _is_due(self, begins: bool, is_new: bool, batch: Any) -> bool:
        assert self._tried is not None
        hits = FAULT_KINDS[self.kind].hits
        if hits == "optimizer":
            return False
        if hits == "rate":
            return begins and self._tried > self.step
        if not self.repeat:
            return begins and self._tried == self.step + 1
        if self._fingerprint is None and begins and is_new and self._taken == self.step + 1:
            self._fingerprint = fingerprint(batch)
            return True
        return self._fingerprint is not None and fingerprint(batch) == self._fingerprint

    def _is_on_this_rank(self, trainer: Trainer) -> bool:
        return self.rank is None or trainer.global_rank == self.rank

    def _arm(self, trainer: Trainer, pl_module: LightningModule, batch_idx: int) -> None:
        at = FiredFault(self.kind, logging_step(trainer), trainer.global_step, trainer.current_epoch, batch_idx)

        def mark() -> None:
            if at not in self._fired[-1:]:
                self._fired.append(at)

        if FAULT_KINDS[self.kind].hits == "rate":
            self._let_the_rate_drift(trainer)
            mark()
            return
        with ExitStack() as undo:
            factor = 1.0 if self.factor is None else self.factor
            site = Site(trainer, pl_module, self.target, factor, self.how, self.seed, undo, mark)
            FAULT_KINDS[self.kind].arm(site)
            self._undo = undo.pop_all()

    def _let_the_rate_drift(self, trainer: Trainer) -> None:
        """At the gate, where no schedule forgets the factor or multiplies by it twice."""
        assert self._tried is not None
        assert self.factor is not None
        self._gates = self._gates or [StepGate.attach(optimizer, user=repr(self)) for optimizer in trainer.optimizers]
        for gate in self._gates:
            gate.scales[repr(self)] = self.factor ** (self._tried - self.step)

    def _disarm(self) -> None:
        if self._undo is not None:
            self._undo.close()
            self._undo = None

    def _leave(self) -> None:
        self._disarm()
        for gate in self._gates:
            gate.detach(user=repr(self))
        self._gates = []
