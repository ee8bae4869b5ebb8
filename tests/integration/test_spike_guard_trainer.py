# SPDX-License-Identifier: Apache-2.0
"""The guard under what a Trainer can be told: how much data, how long, when to validate, what to show and to log."""

from pathlib import Path

import pytest
import torch
from lightning.pytorch.callbacks import GradientAccumulationScheduler, RichProgressBar, TQDMProgressBar
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from torch import nn

from lightning_stable.guard import Rollback, SkipStep
from tests.chaos.chaotic_runs import EpochByEpoch
from tests.faulty_runs import Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import guard, without

COUNT = 12
RESPONSES = {"skip": lambda: SkipStep(times=99), "replay": lambda: Rollback(mode="replay", times=99)}


@pytest.fixture(params=RESPONSES)
def response(request):
    return RESPONSES[request.param]()


# How much data, and how long: what the Trainer uses of the batches, and the settings that clean run needs as well

SETTINGS = {
    "limit_train_batches": (9, {"limit_train_batches": 9}, {}),
    "limit_train_batches, a share": (9, {"limit_train_batches": 0.75}, {}),
    "limit_train_batches of streams": (
        9,
        {"limit_train_batches": 9, "dataset": lambda data: EpochByEpoch([data] * 2)},
        {},
    ),
    "max_steps": (COUNT, {"max_steps": 15, "epochs": -1}, {"max_steps": 15, "epochs": -1}),
    "min_steps": (COUNT, {"min_steps": 30, "epochs": 3}, {"min_steps": 30, "epochs": 3}),
    "sanity check": (COUNT, {"num_sanity_val_steps": 2}, {"num_sanity_val_steps": 2}),
    "clipped by value": (COUNT, *[{"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"}] * 2),
    "profiled": (COUNT, {"profiler": "simple"}, {}),
}


@pytest.mark.parametrize("bad", [{0}, {1, 3}, {2}, {8}], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_what_was_undone_never_happened(setting, response, bad):
    used, arguments, same = SETTINGS[setting]
    actual = run(make_batches(COUNT, bad), [guard(response, snapshot_every=4)], **arguments)
    if "dataset" in arguments:
        same = {"dataset": lambda data: EpochByEpoch([data] * 2)}
    assert_same(actual, run(without(make_batches(COUNT)[:used], bad), **same))


def test_a_dry_run_is_guarded(response):
    actual = run(make_batches(COUNT, {1}), [guard(response)], fast_dev_run=3)
    assert_same(actual.weights, run(without(make_batches(COUNT), {1}), fast_dev_run=2).weights)


@pytest.mark.parametrize("bad", [{0}, {5}, {COUNT - 1}], ids=str)
def test_windows_that_grow_in_mid_run(response, bad):
    """Of one batch in the first epoch, and of two in the second."""

    def schedule():
        return GradientAccumulationScheduler({0: 1, 1: 2})

    batches = make_batches(COUNT)
    actual = run(make_batches(COUNT, bad), [guard(response, snapshot_every=4), schedule()])
    window = {index // 2 * 2 + one for index in bad for one in (0, 1)}
    epochs = [without(batches, bad), without(batches, window)]
    assert_same(actual, run(epochs, [schedule()], dataset=EpochByEpoch))


# When to validate


class WithoutDropout(Net):
    """So that what a validation draws is of no consequence."""

    def __init__(self):
        super().__init__()
        self.layers[3] = nn.Identity()


SAME = ("weights", "buffers", "optimizers", "schedules", "global_step")


@pytest.mark.parametrize(("used", "share"), [(4, 4), (6, 0.5)])
def test_a_few_batches_are_overfitted_without_the_bad_one(used, share, response):
    arguments = {"model": WithoutDropout, "epochs": 4}
    actual = run(make_batches(COUNT, {1}), [guard(response)], overfit_batches=share, **arguments)
    expected = run(without(make_batches(COUNT)[:used], {1}), **arguments)
    assert_same([getattr(actual, part) for part in SAME], [getattr(expected, part) for part in SAME])


@pytest.mark.parametrize(
    "arguments",
    [
        {"val_check_interval": 3},
        {"val_check_interval": 0.25},
        {"val_check_interval": 5, "check_val_every_n_epoch": None},
        {"check_val_every_n_epoch": 2},
    ],
    ids=str,
)
@pytest.mark.parametrize("bad", [{0}, {2}, {4, 5}, {COUNT - 1}], ids=str)
def test_a_run_is_validated_as_often_as_without_spikes_and_is_the_same(arguments, response, bad):
    actual = run(make_batches(COUNT, bad), [guard(response, snapshot_every=4)], model=WithoutDropout, **arguments)
    expected = run(without(make_batches(COUNT), bad), model=WithoutDropout)
    assert_same([getattr(actual, part) for part in SAME], [getattr(expected, part) for part in SAME])
    as_often = run(make_batches(COUNT), model=WithoutDropout, **arguments).val_losses
    assert len(actual.val_losses) == len(as_often)
    assert torch.stack(actual.val_losses).isfinite().all()


# What to show, and to log


@pytest.mark.parametrize("bar", [RichProgressBar, TQDMProgressBar])
def test_a_progress_bar_shows_what_the_guard_has_seen(bar, response, capsys):
    bar = bar(refresh_rate=1)
    settings = {"enable_progress_bar": True, "enable_model_summary": True}
    actual = run(make_batches(COUNT, {5}), [guard(response, snapshot_every=4), bar], **settings)
    assert_same(actual, run(without(make_batches(COUNT), {5})))
    shown = actual.trainer.progress_bar_metrics
    assert shown["incidents"] == "2"
    assert "incidents" in capsys.readouterr().out


def test_every_logger_gets_the_same(tmp_path, response):
    loggers = [CSVLogger(tmp_path / "csv"), TensorBoardLogger(tmp_path / "events"), CSVLogger(tmp_path / "again")]
    actual = run(make_batches(COUNT, {5}), [guard(response, snapshot_every=4)], logger=loggers)
    assert_same(actual, run(without(make_batches(COUNT), {5})))
    first, again = (Path(logger.log_dir, "metrics.csv").read_text() for logger in (loggers[0], loggers[2]))
    assert first == again
    assert "stability/incidents" in first
