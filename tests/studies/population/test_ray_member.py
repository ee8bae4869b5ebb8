# SPDX-License-Identifier: Apache-2.0
import math
from pathlib import Path

import pytest
import torch

from lightning_stable.studies.population.ray_member import CHECKPOINT, STEPS, RayMember
from tests.callbacks import populations
from tests.callbacks.populations import Net, weights
from tests.faulty_runs import assert_same


def fit(callback, model, **settings):
    return populations.fit(callback, model, enable_checkpointing=True, **settings)


@pytest.fixture
def reports(monkeypatch, tmp_path):
    """What is told to Ray, with the checkpoints kept."""
    tune = pytest.importorskip("ray.tune")
    told = []

    def report(metrics, checkpoint):
        path = tmp_path / f"{len(told)}.ckpt"
        path.write_bytes(Path(checkpoint.path, CHECKPOINT).read_bytes())
        told.append((metrics, path))

    monkeypatch.setattr(tune, "report", report)
    return told


def member(rate=0.02, **arguments):
    return RayMember({"lr": rate}, **{"interval": 3, "monitor": "loss", "mode": "min", **arguments})


def test_it_reports_every_turn_with_a_checkpoint_that_another_goes_on_from(reports):
    straight, _ = fit(member(), Net(), max_steps=9)
    assert [metrics[STEPS] for metrics, _ in reports] == [3, 6, 9]
    assert all(math.isfinite(metrics["loss"]) for metrics, _ in reports)
    path = reports[0][1]
    torch.load(path, weights_only=True)
    resumed, _ = fit(member(), Net(), ckpt_path=path, max_steps=9)
    assert_same(weights(resumed), weights(straight))


def test_who_is_copied_hands_on_the_schedule(reports):
    fit(member(0.02), Net(), max_steps=3)
    copy, model = member(0.05), Net()
    fit(copy, model, ckpt_path=reports[0][1], max_steps=6)
    assert copy.segments == [
        {"step": 0, "hyperparameters": {"lr": 0.02}},
        {"step": 3, "hyperparameters": {"lr": 0.05}},
    ]
    assert [rate for _, rate, _ in model.seen] == pytest.approx([0.05 / 1.3, 0.05 / 1.4, 0.05 / 1.5])


@pytest.mark.parametrize(("mode", "worst"), [("min", math.inf), ("max", -math.inf)])
def test_what_cannot_be_compared_is_the_worst(reports, mode, worst):
    class Breaks(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * float("nan")

    fit(member(mode=mode), Breaks(), max_steps=3)
    assert reports[0][0]["loss"] == worst


def test_it_reports_after_the_validation_it_waits_for(reports):
    settings = {"val_check_interval": 4, "check_val_every_n_epoch": None, "max_steps": 8}
    _, trainer = fit(member(monitor="val_loss", interval=4), Net(), num_sanity_val_steps=1, **settings)
    assert [metrics[STEPS] for metrics, _ in reports] == [4, 8]
    assert reports[1][0]["val_loss"] == float(trainer.callback_metrics["val_loss"])
