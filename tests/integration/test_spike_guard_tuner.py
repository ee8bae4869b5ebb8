# SPDX-License-Identifier: Apache-2.0
"""While Lightning looks for a learning rate or a batch size, the guard rests; the run after it is guarded as usual."""

import pytest
import torch
from lightning.pytorch import LightningDataModule
from lightning.pytorch.callbacks import BatchSizeFinder, LearningRateFinder
from lightning.pytorch.tuner import Tuner
from torch.utils.data import DataLoader

from lightning_stable.guard import SkipStep
from tests.faulty_runs import Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import guard

pytestmark = pytest.mark.filterwarnings(
    "ignore:The number of training batches",
    "ignore:Detected call of `lr_scheduler.step",  # of the search itself, with and without a guard
)
SAMPLES = 48


class Tuned(Net):
    def __init__(self):
        super().__init__()
        self.lr = 1e-2

    def configure_optimizers(self):
        self.make_optimizer = lambda parameters: torch.optim.AdamW(parameters, lr=self.lr)
        return super().configure_optimizers()


class Data(LightningDataModule):
    def __init__(self, bad, validation):
        super().__init__()
        self.batch_size, self.bad, self.validation = 2, bad, validation

    def train_dataloader(self):
        batches = make_batches(SAMPLES // 4, self.bad)
        samples = [{key: batch[key][row] for key in batch} for batch in batches for row in range(4)]
        return DataLoader(samples, batch_size=self.batch_size)

    def val_dataloader(self):
        return self.validation


def by_tuner(search, **arguments):
    def before(trainer, module, data, found):
        result = getattr(Tuner(trainer), search)(module, datamodule=data, **arguments)
        found.append(getattr(result, "results", result))
        assert not any(hasattr(optimizer, "_lightning_stable_step_gate") for optimizer in trainer.optimizers)

    return before, lambda found: []


class FindsRate(LearningRateFinder):
    def __init__(self, found):
        super().__init__(num_training_steps=20, early_stop_threshold=None)
        self.found = found

    def on_fit_start(self, trainer, pl_module):
        super().on_fit_start(trainer, pl_module)
        self.found.append(self.optimal_lr.results)


class FindsSize(BatchSizeFinder):
    def __init__(self, found):
        super().__init__(max_trials=3, steps_per_trial=3)
        self.found = found

    def on_fit_start(self, trainer, pl_module):
        super().on_fit_start(trainer, pl_module)
        self.found.append(self.optimal_batch_size)


SEARCHES = {
    "lr_find": by_tuner("lr_find", num_training=20, early_stop_threshold=None),
    "scale_batch_size": by_tuner("scale_batch_size", max_trials=3, steps_per_trial=3),
    "scale_batch_size, binsearch": by_tuner("scale_batch_size", mode="binsearch", max_trials=3, steps_per_trial=3),
    "LearningRateFinder": (lambda *_: None, lambda found: [FindsRate(found)]),
    "BatchSizeFinder": (lambda *_: None, lambda found: [FindsSize(found)]),
}


def searched(search, bad, *callbacks):
    before, finders = SEARCHES[search]
    found = []

    def fit(trainer, module, _, validation, ckpt_path):
        data = Data(bad, validation)
        before(trainer, module, data, found)
        trainer.fit(module, datamodule=data)

    return run([], [*callbacks, *finders(found)], model=Tuned, fit=fit), found


@pytest.mark.parametrize("search", SEARCHES)
def test_a_search_finds_what_it_finds_without_the_guard_and_leaves_no_trace(search):
    guarded = guard(SkipStep(times=99))
    actual, found = searched(search, (), guarded)
    expected, without = searched(search, ())
    assert len(found) == 1
    assert_same(found, without)
    assert_same(actual, expected)
    assert guarded.incidents == []


@pytest.mark.parametrize("search", SEARCHES)
def test_a_bad_batch_is_an_incident_of_the_run_and_not_of_the_search(search):
    guarded = guard(SkipStep(times=99))
    outcome, found = searched(search, {5}, guarded)
    assert len(found) == 1
    assert all(value.isfinite().all() for value in outcome.weights.values())
    assert {incident.epoch for incident in guarded.incidents} == {0, 1}
    steps_of_an_epoch = outcome.trainer.num_training_batches
    assert outcome.global_step == 2 * steps_of_an_epoch - len(guarded.incidents)
