# SPDX-License-Identifier: Apache-2.0
"""What `self.log` keeps in private, and what torchmetrics keeps in private."""

import pytest
import torch
import torchmetrics
from lightning.pytorch import Callback

from lightning_stable._lightning import results
from tests.faulty_runs import Net, assert_same, make_batches, run


def test_a_result_still_has_the_fields():
    fields = set()

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            for saved in results.logged_results(trainer).values():
                fields.update(saved)

    run(make_batches(2), [Look()], epochs=1)
    assert fields == set(results._RESULT_FIELDS)


def test_logged_means_go_back_and_newborn_keys_are_forgotten():
    class LogsLate(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx >= 2:
                self.log("late", 1.0, on_epoch=True)
            return super().training_step(batch, batch_idx)

    class GoesBack(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                self.saved = results.logged_results(trainer)

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 2:
                results.restore_logged_results(trainer, self.saved)
                assert results.latest_logged(trainer, "late") is None
            if batch_idx == 3:
                assert float(results.latest_logged(trainer, "late")) == 1.0

    run(make_batches(4), [GoesBack()], model=LogsLate, epochs=1)


@pytest.mark.parametrize("metric", [torchmetrics.MeanMetric, torchmetrics.CatMetric, torchmetrics.SumMetric])
def test_the_states_of_a_metric_go_back_more_than_once(metric):
    module = metric()
    module.update(torch.tensor([1.0, 2.0]))
    saved = results.metric_states([module])
    expected = module.compute().clone()
    for _ in range(2):
        module.update(torch.tensor([50.0]))
        results.restore_metric_states([module], saved)
        assert_same(module.compute(), expected)


class LogsSometimes(Net):
    """Logs the number of the step in the second of three batches."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            self.log("sometimes", float(self.global_step), on_step=True)
        return super().training_step(batch, batch_idx)


def test_what_is_logged_at_a_step_is_handed_out_once():
    keys, seen = ("train_loss", "train_metric", "nothing", "sometimes"), []

    class Look(Callback):
        def on_train_start(self, trainer, pl_module):
            self.values = {key: results.LoggedOnStep(trainer, key) for key in keys}

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            found = {key: value.take() for key, value in self.values.items()}
            assert torch.equal(found.pop("train_loss"), trainer.callback_metrics["train_loss_step"])
            assert self.values["train_loss"].take() is None
            seen.append([None if value is None else float(value) for value in found.values()])
            assert self.values["sometimes"].is_known == (trainer.global_step > 1)

    run(make_batches(3), [Look()], model=LogsSometimes, epochs=2)
    nothing = [None, None, None]  # the metric is logged once an epoch
    assert seen == [nothing, [None, None, 1.0], nothing, nothing, [None, None, 4.0], nothing]


def test_what_was_logged_before_is_not_handed_out():
    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            assert results.LoggedOnStep(trainer, "train_loss").take() is None

    run(make_batches(2), [Look()], epochs=1)


@pytest.mark.parametrize("on_epoch", [True, False])
def test_what_an_epoch_has_logged_is_not_the_next_ones(on_epoch):
    seen = []

    class Logs(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 1:
                self.log("sometimes", float(self.global_step), on_step=True, on_epoch=on_epoch)
            return super().training_step(batch, batch_idx)

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            value = results.latest_logged(trainer, "sometimes")
            seen.append(None if value is None else float(value))

    run(make_batches(3), [Look()], model=Logs, epochs=2)
    assert seen == [None, 1.0, 1.0, None, 4.0, 4.0]
