# SPDX-License-Identifier: Apache-2.0
import random

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.guard import SpikeGuard
from lightning_stable.guard.defaults import default_ladder, default_warnings, default_watch
from tests.faulty_runs import assert_same, make_batches, run


def test_each_guard_has_detectors_and_responses_of_its_own():
    assert all(one is not other for one, other in zip(default_ladder(), default_ladder(), strict=True))
    assert default_warnings()["loss"] is not default_warnings()["loss"]
    assert all(default_watch()[key] is not detector for key, detector in default_watch().items())


def test_a_run_in_which_one_batch_in_ten_is_bad_loses_these_and_nothing_else():
    guard = SpikeGuard(snapshot_every=4)
    drawn = random.Random(10)
    bad = {index for index in range(400) if drawn.random() < 0.1}
    assert any(bad >= set(range(index, index + 4)) for index in bad)  # some of them in a row
    run(make_batches(400, bad), [guard], epochs=1)
    assert {incident.response for incident in guard.incidents} == {"SkipStep"}
    assert [incident.step for incident in guard.incidents] == sorted(bad)


class Poison(Callback):
    """Spoils a weight after a batch, once, which no signal shows before the next loss."""

    def __init__(self, after):
        self.after = after

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.after:
            self.after = None
            with torch.no_grad():
                next(pl_module.parameters())[0] = torch.nan


@pytest.mark.parametrize(
    ("poisoned_after", "rollbacks", "lost"),
    [
        (40, [(9, 0)], range(32, 52)),  # after the newest snapshot
        (31, [(0, 0), (16, 8)], range(16, 52)),  # before it, so that it holds the bad weight, too
    ],
    ids=["the newest snapshot is good", "the newest snapshot is bad"],
)
def test_a_state_that_has_gone_bad_is_cured_by_going_back(poisoned_after, rollbacks, lost):
    batches = make_batches(120)
    guard = SpikeGuard(snapshot_every=16)
    cured = run(batches, [guard, Poison(poisoned_after)], epochs=1)
    assert [one.response for one in guard.incidents] == ["SkipStep"] * 10 + ["Rollback"] * len(rollbacks)
    assert [(one.steps_rolled_back, one.batches_passed_over) for one in guard.incidents[10:]] == rollbacks
    clean = run([batch for index, batch in enumerate(batches) if index not in lost], [SpikeGuard()], epochs=1)
    assert_same(cured, clean)


def test_a_callback_that_reads_the_loss_survives_everything_a_guard_does_by_default():
    class Losses(Callback):
        def __init__(self):
            self.values = []

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            self.values.append(float(outputs["loss"]))

    losses, guard = Losses(), SpikeGuard(snapshot_every=4)
    run(make_batches(40, set(range(10, 22))), [guard, losses], epochs=1)
    assert {"SkipStep", "Rollback"} <= {incident.response for incident in guard.incidents}
    assert any(incident.batches_passed_over for incident in guard.incidents)
    assert len(losses.values) == 40
