# SPDX-License-Identifier: Apache-2.0
"""The private parts of Lightning's logging that this pack relies on, and what reaches a logger through them."""

import math

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger, TensorBoardLogger
from matplotlib.figure import Figure
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from lightning_stable._lightning import loggers
from tests.faulty_runs import make_batches, run


def bare_trainer(**settings):
    return Trainer(accelerator="cpu", enable_checkpointing=False, **{"logger": False, **settings})


def test_the_epoch_loop_still_has_batches_that_stepped():
    assert bare_trainer().fit_loop.epoch_loop._batches_that_stepped == 0


def test_the_logger_connector_still_has_callback_metrics():
    assert bare_trainer()._logger_connector._callback_metrics == {}


class Calls(Callback):
    """Calls a function at the end of every batch."""

    def __init__(self, function):
        self.function = function

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.function(trainer, pl_module)


class Records(CSVLogger):
    """Remembers what it was sent."""

    def __init__(self, folder):
        super().__init__(folder)
        self.sent = []

    def log_metrics(self, metrics, step=None):
        self.sent.append((step, dict(metrics)))


def test_the_step_is_the_one_lightning_logs_at(tmp_path):
    logger, steps = Records(tmp_path), []
    run(
        make_batches(6),
        [Calls(lambda trainer, _: steps.append(loggers.logging_step(trainer)))],
        epochs=2,
        logger=logger,
        accumulate_grad_batches=2,
    )
    assert steps == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert sorted({step for step, sent in logger.sent if "train_loss_step" in sent}) == sorted(set(steps))


@pytest.mark.filterwarnings("ignore:The number of training batches")
def test_scalars_reach_every_logger_at_once_and_callback_metrics_for_good(tmp_path):
    one, two = Records(tmp_path), Records(tmp_path)
    values = {"stability/x": 16777217, "stability/y": torch.tensor([0.1], dtype=torch.float64), "stability/z": 0.1}
    seen = []

    def log(trainer, _):
        if trainer.global_step == 1:
            loggers.log_scalars(trainer, values)
            seen.append(one.sent[-1])
        seen.append(trainer.callback_metrics["stability/x"].item())

    outcome = run(make_batches(2), [Calls(log)], epochs=2, logger=[one, two], log_every_n_steps=50)
    expected = (0, {"stability/x": 16777217, "stability/y": 0.1, "stability/z": 0.1})  # in full precision
    assert seen == [expected, 16777216.0, 16777216.0, 16777216.0, 16777216.0]
    assert expected in two.sent
    assert outcome.trainer.callback_metrics["stability/y"].dtype == torch.float32


def test_scalars_keep_no_graph_and_no_alias():
    value = torch.ones((), requires_grad=True)
    product = value * 2

    def log(trainer, _):
        loggers.log_scalars(trainer, {"stability/x": product})
        with torch.no_grad():
            product.fill_(7.0)

    outcome = run(make_batches(1), [Calls(log)], epochs=1)
    assert not outcome.trainer.callback_metrics["stability/x"].requires_grad
    assert outcome.trainer.callback_metrics["stability/x"] == 2


def test_tensorboard_shows_text_histograms_and_figures(tmp_path):
    def log(trainer, _):
        assert all(loggers.can_show(trainer, kind) for kind in ("text", "histogram", "figure"))
        loggers.log_text(trainer, "text", "**bold**")
        loggers.log_histogram(trainer, "histogram", torch.tensor([1.0, math.nan, math.inf, 3.0]).bfloat16())
        loggers.log_histogram(trainer, "nothing finite", torch.tensor([math.nan]))
        loggers.log_figure(trainer, "figure", Figure(figsize=(1, 1)))

    run(make_batches(2), [Calls(log)], epochs=1, logger=TensorBoardLogger(tmp_path))
    events = EventAccumulator(str(tmp_path / "lightning_logs" / "version_0"), size_guidance={"histograms": 0})
    events.Reload()
    tags = events.Tags()
    assert tags["histograms"] == ["histogram"]
    assert tags["images"] == ["figure"]
    assert tags["tensors"] == ["text/text_summary"]
    assert [event.step for event in events.Histograms("histogram")] == [0, 1]
    assert events.Histograms("histogram")[0].histogram_value.num == 2


@pytest.mark.parametrize("kind", ["csv", "none"])
def test_loggers_that_cannot_show_a_thing_are_left_alone(tmp_path, kind):
    def log(trainer, _):
        assert not any(loggers.can_show(trainer, kind) for kind in ("text", "histogram", "figure"))
        loggers.log_scalars(trainer, {"stability/x": 1.0})
        loggers.log_text(trainer, "text", "text")
        loggers.log_histogram(trainer, "histogram", torch.ones(3))
        loggers.log_figure(trainer, "figure", None)

    run(make_batches(2), [Calls(log)], epochs=1, logger=CSVLogger(tmp_path) if kind == "csv" else False)
