# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.callbacks.population.turn_score import TurnScore
from tests.faulty_runs import Net, make_batches, run


class Scores(Callback):
    """Notes every score with the step at which it was there, and begins anew with the next batch."""

    def __init__(self, monitor, interval):
        self.monitor, self.interval = monitor, interval
        self.seen, self.losses = [], []

    def on_train_start(self, trainer, pl_module):
        self.turn = TurnScore(trainer, self.monitor, self.interval)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.turn.is_over:
            self.turn.begin()

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.losses.append(float(trainer.callback_metrics["train_loss"]))
        self.turn.end_batch(outputs)
        self.note(trainer)

    def on_validation_end(self, trainer, pl_module):
        self.turn.end_validation()
        self.note(trainer)

    def note(self, trainer):
        if self.turn.is_over and (not self.seen or self.seen[-1][0] != trainer.global_step):
            self.seen.append((trainer.global_step, self.turn.score))


@pytest.mark.parametrize("monitor", ["loss", "train_loss"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_training_is_scored_by_the_mean_of_the_turn(monitor, accumulate):
    scores = Scores(monitor, 2)
    run(make_batches(8), [scores], epochs=1, accumulate_grad_batches=accumulate)
    of_turn = 2 * accumulate
    expected = [sum(scores.losses[i : i + of_turn]) / of_turn for i in range(0, 8, of_turn)]
    if monitor == "train_loss":  # the value of the step, of its last micro-batch among them
        expected = expected if accumulate == 1 else [score for _, score in scores.seen]
    assert [step for step, _ in scores.seen] == list(range(2, 8 // accumulate + 1, 2))
    assert [score for _, score in scores.seen] == pytest.approx(expected, rel=1e-5)


class LogsSometimes(Net):
    """Logs the number of the step in the second of every four."""

    def training_step(self, batch, batch_idx):
        if self.global_step % 4 == 1:
            self.log("sometimes", float(self.global_step), on_step=True)
        return super().training_step(batch, batch_idx)


def test_a_value_counts_once_and_for_the_turn_that_it_was_logged_in():
    scores = Scores("sometimes", 4)
    run(make_batches(6), [scores], model=LogsSometimes, epochs=2)
    assert scores.seen == [(4, 1.0), (8, 5.0), (12, 9.0)]


@pytest.mark.parametrize("settings", [{}, {"limit_val_batches": 0}], ids=str)
def test_a_turn_in_which_training_logs_nothing_is_refused(settings):
    with pytest.raises(ValueError, match=r"monitor='sometimes'\)` has found no such value in a turn of 2 steps"):
        run(make_batches(8), [Scores("sometimes", 2)], model=LogsSometimes, epochs=1, **settings)


def test_a_validation_is_waited_for():
    scores = Scores("val_loss", 3)
    with pytest.warns(UserWarning, match="a turn lasts until the next validation, here 5 steps"):
        outcome = run(make_batches(10), [scores], epochs=1, val_check_interval=5)
    assert [step for step, _ in scores.seen] == [5, 10]
    mean = torch.stack(outcome.val_losses[3:6]).mean()
    assert scores.seen[1][1] == pytest.approx(float(mean), rel=1e-6)


def test_a_validation_too_early_is_none():
    scores = Scores("val_loss", 3)
    run(make_batches(8), [scores], epochs=1, val_check_interval=2)
    assert [step for step, _ in scores.seen] == [4, 8]


def test_a_key_that_nobody_logs_is_named_with_those_there_are():
    with pytest.raises(ValueError, match=r"monitor='val_los'\).*logged are .*val_loss"):
        run(make_batches(8), [Scores("val_los", 3)], epochs=1, val_check_interval=4)
    with pytest.raises(ValueError, match=r"monitor='val_loss'\).*in a turn of 3 steps.*train_loss"):
        run(make_batches(8), [Scores("val_loss", 3)], epochs=1, limit_val_batches=0)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_turn_without_any_loss_has_no_finite_score():
    class NoLoss(Net):
        def training_step(self, batch, batch_idx):
            super().training_step(batch, batch_idx)

    scores = Scores("loss", 2)
    run(make_batches(4), [scores], model=NoLoss, epochs=1)
    assert len(scores.seen) == 2
    assert all(math.isnan(score) for _, score in scores.seen)


def test_its_state_goes_on_in_mid_turn(tmp_path):
    class Twice(Scores):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
            torch.save(self.turn.state_dict(), tmp_path / "state.pt")
            self.turn = TurnScore(trainer, self.monitor, self.interval)
            self.turn.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))

    straight, twice = Scores("loss", 3), Twice("loss", 3)
    run(make_batches(6), [straight], epochs=1)
    run(make_batches(6), [twice], epochs=1)
    assert twice.seen == straight.seen
