# SPDX-License-Identifier: Apache-2.0
"""A restarted run is one whose loader never held the batches that were named, from the last checkpoint on."""

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import SpikeDetection

from lightning_stable.studies.survival import trial
from lightning_stable.studies.survival.parts import Parts
from lightning_stable.studies.survival.run_numbers import Size
from lightning_stable.studies.survival.spike_restarts import fit_with_restarts
from lightning_stable.studies.survival.trial import Training

pytestmark = [
    pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty"),
    pytest.mark.filterwarnings("ignore:Encountered `nan` values in tensor"),
]
TINY = Size(n_layer=1, d_model=8, context=8, batch_size=2, val_batches=1)
STEPS = 24


class BadStream:
    """Whose bad batches a test chooses."""

    steps = STEPS

    def __init__(self, bad):
        self.bad = sorted(bad)

    def bad_batches(self, seed):
        return {"nan_embedding": self.bad} if self.bad else {}


class Seen(Callback):
    """Which batches of the stream were trained on, by their contents."""

    def __init__(self):
        self.tokens = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.tokens.append(batch["tokens"].clone())


def training(bad):
    return Training(Parts(restarts=True), BadStream(bad), seed=0, size=TINY)


def restarted(folder, bad, every=5, most=10):
    run, seen = training(bad), []

    def attempt(drop, callbacks):
        seen.append(Seen())
        return run.begin(folder, drop, [*callbacks, seen[-1]])

    return fit_with_restarts(attempt, STEPS, folder, every, most), seen


def weights_without(folder, drop):
    run = training(set())
    run.parts = Parts()
    trainer, module, data = run.begin(folder, drop, [])
    trainer.fit(module, datamodule=data)
    return module.state_dict()


def assert_same(module, weights):
    assert all(torch.equal(value, weights[name]) for name, value in module.state_dict().items())


def test_a_restarted_run_equals_one_whose_loader_never_held_the_batches(tmp_path):
    run, seen = restarted(tmp_path, {13})
    assert run.dropped == [12, 13]
    assert (run.restarts, run.gave_up) == (1, False)
    assert run.steps_lost == 14 - 10  # steps 10 to 13, the bad one among them
    assert run.seconds_lost > 0
    assert [len(one.tokens) for one in seen] == [14, STEPS - 10 - 2]
    assert_same(run.module, weights_without(tmp_path / "other", [12, 13]))


def test_a_second_spike_is_named_by_its_place_in_the_shorter_stream(tmp_path):
    run, _ = restarted(tmp_path, {7, 18})
    assert run.dropped == [6, 7, 17, 18]
    assert run.restarts == 2
    assert run.steps_lost == (8 - 5) + (17 - 15)  # the second at step 16, from 0, of a stream without two batches
    assert_same(run.module, weights_without(tmp_path / "other", [6, 7, 17, 18]))


def test_a_batch_that_the_checkpoint_has_seen_is_not_left_out_again(tmp_path):
    run, _ = restarted(tmp_path, {10})
    assert run.dropped == [10]
    assert run.steps_lost == 1
    assert_same(run.module, weights_without(tmp_path / "other", [10]))


def test_before_the_first_checkpoint_it_begins_from_the_start(tmp_path):
    run, seen = restarted(tmp_path, {2})
    assert run.dropped == [1, 2]
    assert run.steps_lost == 3
    assert torch.equal(seen[0].tokens[0], seen[1].tokens[0])
    assert_same(run.module, weights_without(tmp_path / "other", [1, 2]))


def test_a_bad_first_batch_is_found_by_the_second_since_the_first_is_not_looked_at(tmp_path):
    run, _ = restarted(tmp_path, {0})
    assert run.dropped == [0, 1]
    assert run.steps_lost == 2


def test_nothing_is_lost_on_a_clean_stream(tmp_path):
    run, _ = restarted(tmp_path, set())
    assert (run.dropped, run.restarts, run.steps_lost, run.seconds_lost) == ([], 0, 0, 0.0)
    assert_same(run.module, weights_without(tmp_path / "other", []))


def test_after_too_many_restarts_it_is_given_up(tmp_path):
    run, _ = restarted(tmp_path, set(range(2, STEPS)), most=2)
    assert run.gave_up
    assert run.restarts == 2
    assert run.steps_lost == 3 + 2 + 2


def test_lightning_still_cannot_load_the_state_that_is_taken_out():
    detection = SpikeDetection()
    with pytest.raises(AttributeError, match="running"):
        detection.load_state_dict(detection.state_dict())


def test_the_study_calls_it_so():
    assert trial.fit_with_restarts is fit_with_restarts
