# SPDX-License-Identifier: Apache-2.0
"""Responses that go back to a snapshot."""

from typing import Literal

from lightning_stable.guard.responses import Actions, Response

_RAMP_FROM = 0.1


class Rollback(Response):
    """Restore a snapshot inside the running `fit`.

    `skip` goes on with the data that follows, as was done by hand for PaLM; the batches since the snapshot are lost.
    `replay` runs the good batches since the snapshot again and leaves the bad ones out. Either way the result equals,
    bit for bit, a run whose loader never held the batches that were left out. No rollback crosses the beginning of its
    epoch, or a resume: where there are fewer snapshots than asked for, it goes to the oldest. Snapshots are not in
    checkpoints: a resumed run begins with a new one, from which `skip` may lose fewer batches than the uninterrupted
    run does.

    Steps that are replayed come out as they were. So `replay` takes back what a bad batch has done, and does not cure
    a state that has gone bad on good ones: there, let a rung that skips come behind it.

    With `escalate` a rollback that has not helped is followed by a harder one. After a rollback over n steps, the
    spiked one included, a spike is *of the same place* if it comes in a step that is replayed, or within n clean steps
    after that, whether the ladder has forgiven or not. The k-th time in a row that the same place fires again, k = 1,
    2, ..., whichever rungs have gone back, the rollback

        goes to a snapshot k older than `back`,  and passes over  escalate * 2^(k-1)  batches of the loader

    A batch that is *passed over* is fetched and not trained on: `training_step` is not called, hooks are, with the
    latest finite loss, and what they change of the model's state is undone. Passed over are whole windows (rounded
    up), after a replay if there is one. The batch index goes on counting, so validation intervals, epoch ends and
    progress bars stay right; if the epoch ends while batches are passed over, the rest of the count is dropped.

    Args:
        mode: `skip` or `replay`. `replay` keeps the batches since the oldest snapshot in memory.
        times: How often in a row of incidents, at least 1.
        back: Which snapshot: 1 is the newest, 2 the one before. An older one lies before a fault that was noticed late.
        reset_momentum: Zero the optimizers' first moments after going back, as `ResetMomentum(moments="first")` does.
        escalate: Batches to pass over when the same place fires again; 0 goes to the same snapshot every time and
            passes over nothing.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from lightning_stable.guard import Halt, SpikeGuard
        >>> guard = SpikeGuard(ladder=[Rollback(mode="replay", times=5), Halt()], snapshot_every=20)
        >>> guard = SpikeGuard(ladder=[Rollback(times=3, escalate=16), Halt()])
    """

    def __init__(
        self,
        mode: Literal["skip", "replay"] = "skip",
        times: int = 2,
        back: int = 1,
        reset_momentum: bool = False,
        escalate: int = 0,
    ) -> None:
        super().__init__(times)
        if mode not in ("skip", "replay"):
            raise ValueError(f'`Rollback(mode=...)` must be "skip" or "replay", got {mode!r}.')
        if back < 1:
            raise ValueError(f"`Rollback(back=...)` must be at least 1, got {back}.")
        if escalate < 0:
            raise ValueError(f"`Rollback(escalate=...)` must be at least 0, got {escalate}.")
        self.mode = mode
        self.needs_replay = mode == "replay"
        self.back = back
        self.reset_momentum = reset_momentum
        self.escalate = escalate
        self.needs_snapshots = back + (escalate > 0)

    def respond(self, actions: Actions) -> list[str]:
        """Restore the snapshot."""
        repeats = actions.repeats() if self.escalate else 0
        pass_over = self.escalate * 2 ** (repeats - 1) if repeats else 0
        restored = actions.roll_back(self.back + repeats, self.needs_replay, pass_over)
        return [*restored, *actions.reset_momentum("first")] if self.reset_momentum else restored


class ReturnToLoaded(Response):
    """Go back to the state that a resume has loaded, whose first steps went too far, and make them again more gently.

    The moments are zeroed, second moments and bias correction included, and the learning rate begins at a tenth. The
    guard answers so by itself, whatever its ladder; batches since the resume are replayed if the ladder replays.

    Args:
        ramp: Optimizer steps until the learning rate is back; 0 leaves it alone.

    Example:
        >>> ReturnToLoaded(ramp=50).vetoes
        False
    """

    vetoes = False  # the step has been taken

    def __init__(self, ramp: int) -> None:
        super().__init__(times=1)
        self.ramp = ramp

    def respond(self, actions: Actions) -> list[str]:
        """Restore the state, and restart the optimizers."""
        return [*actions.return_to_loaded(), *restart_optimizers(actions, self.ramp)]


class RestartOptimizer(Response):
    """Zero the moments of an optimizer whose state is not the one that was saved, and let the learning rate rise anew.

    Args:
        ramp: Optimizer steps until the learning rate is back; 0 leaves it alone.

    Example:
        >>> RestartOptimizer(ramp=50).vetoes
        False
    """

    vetoes = False

    def __init__(self, ramp: int) -> None:
        super().__init__(times=1)
        self.ramp = ramp

    def respond(self, actions: Actions) -> list[str]:
        """Called before the first step after a resume."""
        return restart_optimizers(actions, self.ramp)


def restart_optimizers(actions: Actions, ramp: int) -> list[str]:
    """Zero all moments, and begin at a tenth of the learning rate, which comes back within `ramp` steps.

    Example:
        >>> restart_optimizers.__name__  # needs a running fit
        'restart_optimizers'
    """
    restored = actions.reset_momentum("all")
    return [*restored, *actions.scale_lr(_RAMP_FROM, max(1, ramp // 2))] if ramp else restored


class SkipData(Response):
    """Go back to a snapshot and pass over the next batches, as was done by hand for PaLM.

    The batches since the snapshot are lost, and `batches` more are fetched and not trained on: the result equals, bit
    for bit, a run whose loader held neither. PaLM went back about 100 steps and left out 200 to 500 batches (Chowdhery
    et al., "PaLM: Scaling Language Modeling with Pathways", 2022, section 5.1).

    The k-th time in a row that the same place fires again, it goes back k snapshots further, as far as there are any,
    and passes over 2^k times as many batches. What "the same place" and "passed over" mean, and what happens where the
    epoch ends, is said of `Rollback`.

    Args:
        batches: How many to pass over, in micro-batches, at least 1; rounded up to whole accumulation windows.
        times: How often in a row of incidents, at least 1.
        back: Which snapshot: 1 is the newest, 2 the one before.

    Raises:
        ValueError: If an argument is out of its range.

    Example:
        >>> from lightning_stable.guard import Halt, SkipStep, SpikeGuard
        >>> guard = SpikeGuard(ladder=[SkipStep(), SkipData(batches=200), Halt()], snapshot_every=100)
    """

    def __init__(self, batches: int = 100, times: int = 2, back: int = 1) -> None:
        super().__init__(times)
        if batches < 1:
            raise ValueError(f"`SkipData(batches=...)` must be at least 1, got {batches}.")
        if back < 1:
            raise ValueError(f"`SkipData(back=...)` must be at least 1, got {back}.")
        self.batches = batches
        self.back = back
        self.needs_snapshots = back + (times > 1)

    def respond(self, actions: Actions) -> list[str]:
        """Restore the snapshot, and let the loader go on for a while."""
        repeats = actions.repeats()
        return actions.roll_back(self.back + repeats, replay=False, pass_over=self.batches * 2**repeats)
