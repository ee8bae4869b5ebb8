# SPDX-License-Identifier: Apache-2.0
"""One call for a test: the run survives its faults, or the test says what to do."""

import math
from collections import Counter
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor

from lightning_stable._lightning.trainer import callbacks_of
from lightning_stable.testing.fired_fault import FiredFault
from lightning_stable.testing.inject_fault import InjectFault
from lightning_stable.testing.recovered_run import RecoveredRun
from lightning_stable.testing.run_record import RunRecord, StepRecord

_AFTER_A_RESUME = ("ReturnToLoaded", "RestartOptimizer")  # what the guard answers by itself, whatever its ladder


def assert_recovers(
    trainer: Trainer,
    model: LightningModule,
    data: Any = None,
    val_data: Any = None,
    *,
    ckpt_path: str | None = None,
    allow_halt: bool = False,
    allow_undetected: bool = False,
    max_incidents: int | None = None,
    clean_loss: float | None = None,
    tolerance: float = 0.05,
    last_steps: int = 10,
) -> RecoveredRun:
    """Run `trainer.fit`, and assert that the guard in it has got the model through whatever happened.

    Asserted are: the run came to its end; weights, buffers and optimizer states are finite (a buffer that was not so
    before, such as an attention mask, may stay so); every `InjectFault` among the callbacks came true; every step
    whose loss or gradients were not finite is an incident of its own, but for overflows that a gradient scaler skips;
    so is every step with a loud fault; the guard answered in the order and within the budgets of its ladder; and what
    else the arguments ask for.

    Args:
        trainer: With a fresh `SpikeGuard` among its callbacks.
        model: What it trains.
        data: Training loader or loaders, or a `LightningDataModule`; None if the model brings its own.
        val_data: Validation loaders.
        ckpt_path: Resume from there.
        allow_halt: Whether the guard may end the run.
        allow_undetected: Whether a loud fault of finite size may go by without an incident, as while detectors warm
            up.
        max_incidents: How many incidents there may be; None for any number.
        clean_loss: The training loss that a run without faults ends with, `final_loss` of its `assert_recovers`.
        tolerance: How far above `clean_loss` the final loss may be, as a share of it.
        last_steps: The final loss is the mean over that many kept steps.

    Raises:
        AssertionError: If the run has not recovered, with everything that was found and what to do about it.
        ValueError: If the trainer has no fresh guard.

    Example:
        >>> from tempfile import TemporaryDirectory
        >>> from lightning.pytorch.demos.boring_classes import BoringModel
        >>> from lightning_stable.guard import SpikeGuard
        >>> from lightning_stable.testing import InjectFault
        >>> quiet = dict(logger=False, enable_checkpointing=False, enable_progress_bar=False)
        >>> faults = [InjectFault("nan_loss", step=3), InjectFault("inf_gradient", step=5)]
        >>> quiet |= dict(max_steps=8, limit_val_batches=0, enable_model_summary=False)
        >>> with TemporaryDirectory() as folder:  # doctest: +ELLIPSIS
        ...     trainer = Trainer(
        ...         callbacks=[SpikeGuard(), *faults], accelerator="cpu", default_root_dir=folder, **quiet
        ...     )
        ...     run = assert_recovers(trainer, BoringModel())
        SpikeGuard...
        >>> [incident.step for incident in run.incidents]
        [3, 5]
    """
    guard = _guard_of(trainer)
    record = RunRecord()
    not_finite_before = set(_not_finite(model.named_buffers()))
    callbacks_of(trainer).insert(callbacks_of(trainer).index(guard) + 1, record)
    try:
        halted = _fit(trainer, model, data, val_data, ckpt_path)
    finally:
        callbacks_of(trainer).remove(record)
    faults = [callback for callback in callbacks_of(trainer) if isinstance(callback, InjectFault)]
    fired = sorted((fault for callback in faults for fault in callback.fired), key=lambda fault: fault.step)
    run = RecoveredRun(
        incidents=list(guard.incidents),
        fired=fired,
        final_loss=_final_loss(record, {incident.step for incident in guard.incidents}, last_steps),
        global_step=trainer.global_step,
        halted=halted is not None,
    )
    loud = [fault for callback in faults if callback.is_loud for fault in callback.fired]
    problems = [
        *_of_the_end(trainer, halted, allow_halt),
        *_of_the_state(trainer, model, not_finite_before),
        *(_of_faults_that_did_not_fire(faults, trainer) if halted is None else ()),
        *_of_steps_without_incident(run, record.steps, [] if allow_undetected else loud),
        *_of_the_ladder(guard, run.incidents),
        *_of_the_numbers(run, max_incidents, clean_loss, tolerance),
    ]
    assert not problems, _report(problems, run)
    return run


def _guard_of(trainer: Trainer) -> Any:
    """By what it shows of itself, so that a guard of your own will do."""
    guards: list[Any] = [
        callback
        for callback in callbacks_of(trainer)
        if getattr(callback, "judges_gradients", False) and hasattr(callback, "incidents")
    ]
    if len(guards) != 1:
        raise ValueError(
            f"`assert_recovers(trainer=...)` needs one guard, got {len(guards)}. Use "
            "`Trainer(callbacks=[SpikeGuard()])`."
        )
    if guards[0].incidents:
        raise ValueError("`assert_recovers(trainer=...)` needs a guard that was not used before. Make a new one.")
    return guards[0]


def _fit(trainer: Trainer, model: LightningModule, data: Any, val_data: Any, ckpt_path: str | None) -> Any:
    """The error with which a guard halted the run, if it did; any other error is not ours to judge."""
    try:
        trainer.fit(model, data, val_data, ckpt_path=ckpt_path)
    except RuntimeError as error:
        if not hasattr(error, "report"):
            raise
        return error
    return None


def _final_loss(record: RunRecord, incidents: set[int], last_steps: int) -> float:
    kept = [step.loss for number, step in record.steps.items() if number not in incidents and not step.is_overflow]
    last = kept[-last_steps:]
    return sum(last) / len(last) if last else math.nan


def _of_the_end(trainer: Trainer, halted: Any, allow_halt: bool) -> Iterator[str]:
    if halted is not None and not allow_halt:
        yield (
            "The guard halted the run. Give it more budget in `SpikeGuard(ladder=...)`, or pass `allow_halt=True`. It "
            f"said: {halted.report}"
        )
    elif halted is None and not trainer.state.finished:
        yield f"`fit` came back with the run {trainer.state.status}. Look at what stopped it."


def _of_the_state(trainer: Trainer, model: LightningModule, not_finite_before: set[str]) -> Iterator[str]:
    remedy = "The bad step came through: put the guard before the callbacks that change weights, or report a bug."
    places = {
        "Weights": _not_finite(model.named_parameters()),
        "Buffers": [name for name in _not_finite(model.named_buffers()) if name not in not_finite_before],
        "Optimizer states": _not_finite(_optimizer_tensors(trainer, model)),
    }
    for place, names in places.items():
        if names:
            yield f"{place} are not finite: {', '.join(names[:5])}{', ...' if len(names) > 5 else ''}. {remedy}"


def _optimizer_tensors(trainer: Trainer, model: LightningModule) -> Iterator[tuple[str, Tensor]]:
    names: dict[Tensor, str] = {parameter: name for name, parameter in model.named_parameters()}
    for index, optimizer in enumerate(trainer.optimizers):
        for parameter, state in optimizer.state.items():
            where = names.get(parameter, f"of optimizer {index}")
            tensors = state.items() if isinstance(state, dict) else ()
            yield from ((f"{where}.{name}", value) for name, value in tensors if isinstance(value, Tensor))


def _not_finite(tensors: Iterator[tuple[str, Tensor]]) -> list[str]:
    return [name for name, tensor in tensors if not torch.isfinite(tensor.detach()).all()]


def _of_faults_that_did_not_fire(faults: Sequence[InjectFault], trainer: Trainer) -> Iterator[str]:
    for fault in faults:
        on_this_rank = fault.rank is None or fault.rank == trainer.global_rank
        if on_this_rank and not fault.fired:
            yield (
                f"`{fault!r}` did not fire. The run has {trainer.global_step} steps: choose one of them, and a "
                "`target` that the training step uses."
            )


def _of_steps_without_incident(
    run: RecoveredRun, steps: dict[int, StepRecord], loud: Sequence[FiredFault]
) -> Iterator[str]:
    known = {incident.step for incident in run.incidents}
    for number, step in steps.items():
        if step.is_spike and number not in known:
            yield (
                f"Step {number} had a loss of {step.loss:g}, gradients "
                f"{'finite' if step.has_finite_gradient else 'not finite'}, and no incident. The guard did not see it: "
                "it must be before whatever hides them."
            )
    answered = known | {number for number, step in steps.items() if step.is_overflow}
    for fault in loud:
        if fault.step not in answered:
            yield (
                f"{fault} was not noticed. Make its `factor` larger, put it where the detectors have warmed up (32 "
                "steps by default), or pass `allow_undetected=True`."
            )


def _of_the_ladder(guard: Any, incidents: Sequence[Any]) -> Iterator[str]:
    """What holds of any climb: which steps in between were clean, and what applied, only the guard knows."""
    ladder = getattr(guard, "ladder", None)
    if ladder is None:
        return
    rungs = [rung for rung in ladder.rungs if not rung.is_side]
    order = [type(rung).__name__ for rung in rungs for _ in range(rung.times)]
    budget = Counter([*order, "Halt"])
    in_order = not ladder.cooldown and all(rung.vetoes for rung in rungs)  # else a rung may have been passed over
    answers = [incident for incident in incidents if incident.response not in _AFTER_A_RESUME]
    spent: Counter[str] = Counter()
    previous = None
    for answer in answers:
        if previous is not None and ladder.forgive_after is not None and answer.step - previous > ladder.forgive_after:
            spent.clear()  # perhaps: not if some of these steps were replayed, or left to a gradient scaler
            in_order = False
        place = spent.total()
        expected = order[place] if place < len(order) else "Halt"
        spent[answer.response] += 1
        if in_order and answer.response != expected:
            yield f"By the ladder's budgets the answer should have been {expected}: {answer}. Report a bug."
        elif spent[answer.response] > budget[answer.response]:
            yield f"The ladder's budgets hold {budget[answer.response]} of these in a row: {answer}. Report a bug."
        previous = answer.step


def _of_the_numbers(
    run: RecoveredRun, max_incidents: int | None, clean_loss: float | None, tolerance: float
) -> Iterator[str]:
    if max_incidents is not None and len(run.incidents) > max_incidents:
        yield (
            f"There were {len(run.incidents)} incidents, and `max_incidents={max_incidents}` allows fewer. Are the "
            "detectors too strict? Raise their `threshold`, `min_rise` or `min_ratio`."
        )
    if clean_loss is not None and not run.final_loss <= clean_loss + tolerance * abs(clean_loss):
        yield (
            f"The final loss is {run.final_loss:.4g}, more than {tolerance:.0%} above the {clean_loss:.4g} of a clean "
            "run. Let the run be longer after its last fault, use a milder ladder, or raise `tolerance`."
        )


def _report(problems: Sequence[str], run: RecoveredRun) -> str:
    lines = ["The run did not recover:", *(f"- {problem}" for problem in problems)]
    lines += ["Faults that fired:", *(f"  {fault}" for fault in run.fired)]
    lines += ["Incidents:", *(f"  {incident}" for incident in run.incidents)]
    return "\n".join(lines)
