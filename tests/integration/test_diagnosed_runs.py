# SPDX-License-Identifier: Apache-2.0
"""A step that is run again to find its cause leaves no trace on anything."""

import collections

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger

from lightning_stable.guard import Diagnose, Rollback, SkipStep
from tests.faulty_runs import Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import COUNT, SETTINGS, arguments_of, guard, kind_of

AUTOMATIC = [setting for setting in SETTINGS if "manual" not in setting]


@pytest.mark.parametrize("setting", AUTOMATIC)
@pytest.mark.parametrize(
    "response", [SkipStep(times=9), SkipStep(times=9, count_skipped=True), Rollback(times=9), Rollback("replay", 9)]
)
def test_the_run_is_the_same_with_and_without_it(setting, response):
    batches = make_batches(COUNT, {0, 5, 6, 11}, kind=kind_of(setting))
    actual = run(batches, [guard(Diagnose(times=99), response, Rollback(), snapshot_every=3)], **arguments_of(setting))
    expected = run(batches, [guard(response, Rollback(), snapshot_every=3)], **arguments_of(setting))
    assert_same(actual, expected)


@pytest.mark.parametrize("accumulate", [2, 5])
def test_with_accumulation_as_well(accumulate):
    batches = make_batches(23, {3, 12, 22})
    arguments = {"accumulate_grad_batches": accumulate, "gradient_clip_val": 0.5}
    actual = run(batches, [guard(Diagnose(times=9), SkipStep(9), Rollback(), snapshot_every=2)], **arguments)
    assert_same(actual, run(batches, [guard(SkipStep(9), Rollback(), snapshot_every=2)], **arguments))


class Remembers(Net):
    """Keeps what it sees in every way a module can, and draws from a generator of its own."""

    def __init__(self):
        super().__init__()
        self.count, self.seen_losses, self.by_index, self.indices = 0, [], {}, set()
        self.recent, self.average = collections.deque(maxlen=3), torch.zeros(())
        self.generator = torch.Generator().manual_seed(3)
        self.target = torch.nn.Linear(16, 1).requires_grad_(False)

    def training_step(self, batch, batch_idx):
        batch["x"] += 0.01 * torch.randn(batch["x"].shape, generator=self.generator)
        loss = super().training_step(batch, batch_idx)
        self.count += 1
        self.seen_losses.append(loss.detach())
        self.by_index[batch_idx] = self.count
        self.indices.add((batch_idx, self.count))
        self.recent.append(self.count)
        self.average.mul_(0.9).add_(0.1)
        self.newest = self.count
        with torch.no_grad():
            self.target.weight.lerp_(self.layers[4].weight, 0.1)
        self.log_dict({"count": float(self.count)}, on_epoch=True)
        self.logger.experiment.add_scalar("by_hand", self.count, self.count)
        return loss


class Watches(Callback):
    """Notes every hook that is called, and the gradients that the guard has left."""

    def __init__(self):
        self.calls, self.gradients, self.modules = [], [], []

    def __getattribute__(self, name):
        if name.startswith("on_") and name not in ("on_train_batch_end", "on_train_end"):
            self.calls.append(name)
        return super().__getattribute__(name)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.calls.append("on_train_batch_end")
        self.gradients += [parameter.grad for parameter in pl_module.parameters() if parameter.grad is not None]

    def on_train_end(self, trainer, pl_module):
        names = ("count", "seen_losses", "by_index", "recent", "average", "newest")
        self.modules = [getattr(pl_module, name) for name in names]
        self.modules = [list(value) if isinstance(value, collections.deque) else value for value in self.modules]
        self.modules += [sorted(pl_module.indices), pl_module.generator.get_state()]
        self.modules.append(sorted(vars(pl_module)))


def watched(tmp_path, *ladder, batches, **arguments):
    watches = Watches()
    logger = TensorBoardLogger(tmp_path, name="", version="")
    guarded = guard(*ladder, SkipStep(9), Rollback(), snapshot_every=3)
    profiler = {"profiler": "simple"}
    outcome = run(batches, [guarded, watches], model=Remembers, logger=logger, **profiler, **arguments)
    trainer = outcome.trainer
    calls = {name: len(durations) for name, durations in trainer.profiler.recorded_durations.items()}
    return outcome, watches, calls, trainer


def finite(tensors):
    return [tensor.nan_to_num(nan=-12345.0) for tensor in tensors]  # NaN equals NaN here


def test_module_gradients_callbacks_and_profilers_see_nothing_of_it(tmp_path):
    batches = make_batches(COUNT, {4, 8})
    outcome, watches, calls, trainer = watched(tmp_path / "a", Diagnose(times=9), batches=batches)
    others = watched(tmp_path / "b", batches=batches)
    assert_same(outcome, others[0])
    assert watches.calls == others[1].calls
    assert_same(finite(watches.gradients), finite(others[1].gradients))
    assert_same(finite(watches.modules.pop(1)), finite(others[1].modules.pop(1)))
    assert_same(watches.modules, others[1].modules)
    assert calls == others[2]
    assert isinstance(trainer.logger, TensorBoardLogger)


def test_loggers_are_told_the_same(tmp_path):
    written = []
    for name, ladder in (("with", [Diagnose(times=9)]), ("without", [])):
        logger = CSVLogger(tmp_path, name=name, version=0)
        guarded = guard(*ladder, SkipStep(9), Rollback(), snapshot_every=3)
        run(make_batches(COUNT, {4, 8}), [guarded], logger=logger)
        written.append((tmp_path / name / "version_0" / "metrics.csv").read_text())
    assert written[0] == written[1]


def test_a_plateau_schedule_is_the_same():
    class Plateau(Net):
        def configure_optimizers(self):
            optimizer = self.make_optimizer(self.parameters())
            schedule = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
            return [optimizer], [{"scheduler": schedule, "interval": "step", "monitor": "train_loss_step"}]

    for count_skipped in (False, True):
        batches, skip = make_batches(COUNT, {5, 8}, how="huge"), SkipStep(9, count_skipped)
        actual = run(batches, [guard(Diagnose(times=9), skip)], model=Plateau)
        assert_same(actual, run(batches, [guard(skip)], model=Plateau))
