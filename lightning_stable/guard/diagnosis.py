# SPDX-License-Identifier: Apache-2.0
"""Why a step spiked: run it again where it was, and from an older snapshot."""

import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_warn
from lightning_utilities.core.apply_func import apply_to_collection

from lightning_stable._lightning.repeated_step import run_again
from lightning_stable.functional.fingerprint import fingerprint
from lightning_stable.functional.tensor_norms import local
from lightning_stable.guard.side_responses import Scene, SideResponse, SpikedStep
from lightning_stable.guard.signals import GRAD_NORM, LOSS
from lightning_stable.guard.step_reading import read_step
from lightning_stable.snapshots.plain_attributes import plain_attributes
from lightning_stable.snapshots.snapshot import Snapshot

_TOLERANCE = 1e-3  # relative, where the same operations need not give the same bits

Readings = dict[str, float]


class Diagnose(SideResponse):
    """Find out whether the data, the state, or the machine brought a spike about.

    Before anything is undone, forward and backward of the step that spiked are run again, with the same batches and
    random numbers:

        from the state before the step    loss or gradient norm differs        not reproducible: hardware or
                                                                               nondeterminism
        from older snapshots in turn      healthy from the one of step N       the state: the batch is fine from step N
                                          a spike from each of them            the data
                                          there is none                        the data or the state

    "Differs" is to the last bit on a CPU, or with deterministic algorithms, and by more than 1e-3 of the value
    elsewhere; NaN equals NaN. "Healthy" is what the guard's detectors say of loss and gradient norm, with the history
    that they judged the spike by. From a snapshot come parameters and buffers; only those of the running epoch that are
    at least one optimizer step older than the spike are asked, the newest first. There are snapshots if the ladder
    holds a `Rollback` or `SkipData`.

    The answer is the incident's `cause`; what was read is in its `notes`, and `batch_hash` is the SHA-256 of each
    batch. Whatever happens in the repeated steps, the run goes on, bit for bit, as if they had not been: of the module
    are put back parameters, buffers, gradients, metrics, and plain attributes, together with what tensors, generators
    and containers among them hold; `self.log` and the loggers do nothing meanwhile, and no callback's hook is called.
    Not put back is what `training_step` changes elsewhere. An error in them is a note in the incident.

    Not repeated is what callbacks do to a batch, a loss or gradients, and what `training_step` reads of its own
    attributes is as the first try has left it: a step that is changed in one of these ways looks as if it were not
    reproducible. A spike that neither loss nor gradient norm gave away, and a step that `ClipStep` has taken, are not
    looked into; a note says so. While it works, a copy of the parameters is in the machine's memory, and a second set
    of gradients beside the model.

    Args:
        times: How often before clean steps fill its budget again, at least 1. Each costs about one step, and one more
            for each snapshot that is asked.

    Raises:
        ValueError: If `times` is below 1; or, from `fit`, under manual optimization, with an optimizer that runs its
            closure more than once, or if `training_step` takes a `dataloader_iter`.
        RuntimeError: From `fit`, with more than one process.

    Example:
        >>> from lightning_stable.guard import Halt, Rollback, SkipStep, SpikeGuard
        >>> guard = SpikeGuard(ladder=[Diagnose(), SkipStep(times=3), Rollback(), Halt()])
    """

    needs_batches = True

    def __init__(self, times: int = 3) -> None:
        super().__init__(times)

    def prepare(self, trainer: Trainer) -> None:
        """Refuse what cannot be run again."""
        if trainer.world_size > 1:
            raise RuntimeError(
                f"`Diagnose()` runs steps again in one process, and there are {trainer.world_size}. Leave it out."
            )
        if not trainer.lightning_module.automatic_optimization:
            raise ValueError(
                "`Diagnose()` needs automatic optimization: it cannot run a `training_step` again that steps the"
                " optimizers itself. Leave it out."
            )
        for optimizer in trainer.optimizers:
            if getattr(optimizer, "needs_closure", False):
                raise ValueError(
                    f"`Diagnose()` cannot run a step of `{type(optimizer).__name__}` again, which moves the weights to"
                    " take its gradients elsewhere. Leave it out."
                )

    def before_response(self, step: SpikedStep) -> None:
        """Run the step again, and write down what that says."""
        window = step.window
        try:
            window.batch_hash = [fingerprint(batch) for batch in step.recovery.window]
            reason = _cannot_be_told(step)
            if reason:
                window.notes.append(f"cause not looked for: {reason}")
            else:
                _find_cause(step)
        except Exception as error:  # whatever somebody else's step does
            what = f"{type(error).__name__}: {error}"
            window.notes.append(f"cause not found: {what}")
            rank_zero_warn(f"`Diagnose()` could not run the step again ({what}). The run goes on.")

    def act(self, scene: Scene) -> None:
        """Nothing more: the incident has it all."""
        return


def _cannot_be_told(step: SpikedStep) -> str:
    if not step.window.is_vetoed:
        return "the step was taken"
    if step.signals.judge(_of_the_step(step.window.readings)) is None:
        return "neither loss nor gradient norm gave the spike away"
    return ""


def _find_cause(step: SpikedStep) -> None:
    window = step.window
    again = _run(step)
    window.notes.append(f"again in place: {_described(again)}")
    if not _same(again, _of_the_step(window.readings), step.trainer.strategy.root_device):
        window.cause = "not reproducible: hardware or nondeterminism"
        return
    window.cause = "the data or the state"
    snapshots = step.recovery.older_snapshots()
    for snapshot in snapshots:
        readings = _run(step, snapshot)
        window.notes.append(f"from step {snapshot.global_step}: {_described(readings)}")
        if step.signals.judge(readings) is None:
            window.cause = f"the state: the batch is fine from step {snapshot.global_step}"
            return
    if snapshots:
        window.cause = "the data"


def _run(step: SpikedStep, snapshot: Snapshot | None = None) -> Readings:
    """Loss and gradient norm of the step, run again as it was, or with a snapshot's weights and buffers."""
    trainer, module = step.trainer, step.pl_module
    with step.recovery.before_the_window(), _kept(module):
        if snapshot is not None:
            snapshot.restore_model()
        losses = run_again(trainer, _batches(step))
        reading = read_step(trainer, trainer.optimizers[0], losses, {}, [])
    readings = {LOSS: reading.loss, GRAD_NORM: reading.norm}
    return {key: value for key, value in readings.items() if value is not None}


def _batches(step: SpikedStep) -> Iterator[tuple[Any, int]]:
    """The batches as the loader gave them, while the random numbers are as they were when it did."""
    recovery = step.recovery
    for batch, index, random in zip(recovery.window, step.window.batches, recovery.random_of_window, strict=True):
        random.restore()
        yield apply_to_collection(batch, torch.Tensor, torch.Tensor.clone), index  # a step may change its batch


@contextmanager
def _kept(module: LightningModule) -> Iterator[None]:
    """Put back what a step changes of a module and `StepState` does not hold; gradients are none to begin with."""
    parameters = list(module.parameters())
    gradients = [parameter.grad for parameter in parameters]
    values = [local(parameter).detach().to("cpu", copy=True) for parameter in parameters]
    attributes = plain_attributes(module)
    try:
        for parameter in parameters:
            parameter.grad = None
        yield
    finally:
        with torch.no_grad():
            for parameter, gradient, value in zip(parameters, gradients, values, strict=True):
                parameter.grad = gradient
                local(parameter).copy_(value)
        for kept in attributes:
            kept.put_back()


def _of_the_step(readings: Mapping[str, float]) -> Readings:
    return {key: readings[key] for key in (LOSS, GRAD_NORM) if key in readings}


def _same(readings: Readings, others: Readings, device: torch.device) -> bool:
    exact = device.type == "cpu" or torch.are_deterministic_algorithms_enabled()
    return readings.keys() == others.keys() and all(_equal(readings[key], others[key], exact) for key in readings)


def _equal(one: float, other: float, exact: bool) -> bool:
    if one == other or (math.isnan(one) and math.isnan(other)):
        return True
    if exact:
        return False
    return math.isclose(one, other, rel_tol=_TOLERANCE) or not (math.isfinite(one) or math.isfinite(other))


def _described(readings: Readings) -> str:
    return ", ".join(f"{key} {value:.6g}" for key, value in readings.items())
