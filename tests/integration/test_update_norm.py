# SPDX-License-Identifier: Apache-2.0
"""Steps that are undone when an optimizer has moved already: its update was too large, or a later optimizer spiked."""

import pytest
import torch
from lightning.pytorch import Callback
from torch import nn

from lightning_stable.detectors import MedianDeviation
from lightning_stable.guard import ClipStep, Halt, Rollback, ScaleLR, SkipStep, SpikeGuard
from tests.faulty_runs import Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import SETTINGS, guard, without

BAD = {6, 7, 11, 19}


class LeapAt(Callback):
    """The step with one of `bad` is made with a learning rate a thousand times too large; its gradient is healthy."""

    def __init__(self, bad):
        self.marks = {make_batches(20)[index]["x"][0, 0].item() for index in bad}

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.leaps = batch["x"][0, 0].item() in self.marks

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        if self.leaps:
            optimizer.param_groups[0]["lr"] *= 1e3


def watching(*ladder, **arguments):
    watch = {"update_norm": MedianDeviation(warmup=3, min_ratio=10.0)}
    return SpikeGuard(watch=watch, ladder=[*ladder, Halt()], snapshot_every=4, **arguments)


@pytest.mark.parametrize("rung", [SkipStep(times=99), Rollback("replay", times=99)], ids=["skip", "replay"])
@pytest.mark.parametrize("name", ["fp32", "16-mixed", "sgd", "fused", "manual"])
def test_a_step_that_moves_too_far_was_never_taken(name, rung):
    arguments = {key: value() if key == "plugins" else value for key, value in SETTINGS[name].items()}
    guarded = watching(rung)
    actual = run(make_batches(20), [guarded, LeapAt(BAD)], epochs=1, **arguments)
    arguments = {key: value() if key == "plugins" else value for key, value in SETTINGS[name].items()}
    assert_same(actual, run(without(make_batches(20), BAD), epochs=1, **arguments))
    assert [incident.batches for incident in guarded.incidents] == [[index] for index in sorted(BAD)]
    assert {incident.signal for incident in guarded.incidents} == {"update_norm"}
    assert {incident.steps_skipped for incident in guarded.incidents} == {1}


def test_accumulated_windows_are_undone_too():
    guarded, leap = watching(SkipStep(times=99)), LeapAt({7, 13})
    actual = run(make_batches(20), [guarded, leap], epochs=1, accumulate_grad_batches=2)
    assert_same(actual, run(without(make_batches(20), {6, 7, 12, 13}), epochs=1, accumulate_grad_batches=2))


def test_what_cannot_answer_any_more_is_passed_over():
    """There is no gradient left to shrink."""
    guarded = watching(ClipStep(), ScaleLR(0.5))
    run(make_batches(20), [guarded, LeapAt({9})], epochs=1)
    assert [incident.response for incident in guarded.incidents] == ["ScaleLR"]


def test_it_is_logged_and_in_the_history(tmp_path):
    seen, guarded = [], watching(SkipStep(times=99))

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            seen.append(trainer.callback_metrics["stability/update_norm"].item())

    run(make_batches(20), [guarded, LeapAt({9}), Look()], epochs=1)
    assert seen[9] > 100 * seen[8] > 0
    history = guarded.state_dict()["signals"]["detectors"]["update_norm"]["values"]
    assert max(history) < seen[9] / 100


class TwoByHand(Net):
    """Each optimizer steps on a loss of its own; the second one's is broken in bad batches."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.other = nn.Linear(8, 1)

    def training_step(self, batch, batch_idx):
        first, second = self.optimizers()
        loss = super().training_step({"x": batch["x"].nan_to_num(), "y": batch["y"]}, batch_idx)
        for optimizer, own in ((first, loss), (second, self.other(batch["x"]).square().mean())):
            optimizer.zero_grad()
            self.manual_backward(own)
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.AdamW(part.parameters(), lr=1e-2) for part in (self.layers, self.other)]


@pytest.mark.parametrize("rung", [SkipStep(times=99), Rollback("replay", times=99)], ids=["skip", "replay"])
def test_steps_of_optimizers_before_the_one_that_spiked_are_taken_back(rung):
    guarded = guard(rung, snapshot_every=4)
    actual = run(make_batches(12, {0, 5, 6}), [guarded], model=TwoByHand)
    assert_same(actual, run(without(make_batches(12), {0, 5, 6}), model=TwoByHand))
    assert {incident.signal for incident in guarded.incidents} <= {"loss/1", "grad_norm/1"}


def test_the_copy_that_is_made_for_every_step_counts_as_a_snapshot():
    kept = {}
    for name, watch in (("without", {}), ("with", {"update_norm": MedianDeviation()})):
        guarded = SpikeGuard(watch=watch, ladder=[Rollback(), Halt()])
        run(make_batches(4), [guarded], epochs=1)
        kept[name] = guarded._journal.snapshots
    assert kept["without"].startswith("1 of ")
    assert kept["with"].startswith("2 of ")
