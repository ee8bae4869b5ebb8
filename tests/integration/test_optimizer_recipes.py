# SPDX-License-Identifier: Apache-2.0
"""What the headers of the optimizers' recipes claim, shrunken to what seconds can show; two of them at full length."""

import math
from itertools import pairwise

import pytest
import torch
import yaml

from lightning_stable.studies.recipes import find_recipe
from lightning_stable.studies.run_log import read_run
from lightning_stable.testbeds import CharLM, DigitsClassifier
from tests.small_fit import LIGHTNING_CLI_WARNS, full_fit, small_fit

pytestmark = pytest.mark.filterwarnings(LIGHTNING_CLI_WARNS)

CHARLM = ("charlm_spam", "charlm_stable_spam", "charlm_sophia")
PREVENTING = ("charlm_spam", "charlm_stable_spam")


def load(name):
    return yaml.safe_load(find_recipe(name).path.read_text())


def small_run(folder, recipe, *arguments, steps=3):
    assert small_fit(folder, *arguments, recipe=recipe, steps=steps) == 0
    return read_run(folder / "run" / "version_0")


def values(log, tag):
    return [value for _, value in log.scalars[tag]]


def last(log, tag):
    return values(log, tag)[-1]


@pytest.fixture
def passes(monkeypatch):
    """The weights' checksum in every pass of training."""
    seen, training_step = [], DigitsClassifier.training_step

    def counted(self, batch, batch_idx=0):
        seen.append(sum(parameter.detach().double().sum().item() for parameter in self.parameters()))
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(DigitsClassifier, "training_step", counted)
    return seen


# The recipes and what they are compared with


@pytest.mark.parametrize("name", CHARLM)
def test_a_charlm_recipe_differs_from_the_baseline_in_its_optimizer_alone(name):
    ours, baseline = load(name), load("charlm_adamw")
    optimizer = ours.pop("optimizer")
    assert optimizer["init_args"].keys() >= {"lr", "weight_decay"}
    for recipe in (ours, baseline):
        del recipe["trainer"]["callbacks"], recipe["trainer"]["logger"]
    if name == "charlm_sophia":
        assert baseline["data"]["init_args"].pop("corrupt")
    assert ours == baseline


def test_stable_spam_knows_the_length_of_its_run():
    recipe = load("charlm_stable_spam")
    steps = recipe["trainer"]["max_epochs"] * recipe["data"]["init_args"]["batches_per_epoch"]
    assert recipe["optimizer"]["init_args"]["total_steps"] == steps


@pytest.mark.parametrize("name", [*CHARLM, "digits_large_batch_lamb", "digits_sam", "digits_agc_norm_free"])
def test_the_header_names_the_paper(name):
    header = find_recipe(name).path.read_text().partition("\nseed_everything")[0]
    assert "Paper: " in header


# Bad batches


@pytest.mark.parametrize("name", PREVENTING)
def test_a_step_whose_gradient_is_nan_changes_no_weight_and_the_run_goes_on(name, tmp_path, monkeypatch):
    weights, training_step = [], CharLM.training_step

    def watched(self, batch, batch_idx=0):
        weights.append(torch.cat([parameter.detach().flatten().clone() for parameter in self.parameters()]))
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(CharLM, "training_step", watched)
    bad = "--data.corrupt=[{kind: nan_embedding, batches: [3, 4]}]"
    log = small_run(tmp_path, name, bad, steps=8)
    assert [math.isnan(loss) for loss in values(log, "train_loss")] == [step in (3, 4) for step in range(8)]
    stood = [torch.equal(before, after) for before, after in pairwise(weights)]
    assert stood == [step in (3, 4) for step in range(7)]
    assert weights[-1].isfinite().all()


def test_the_baseline_is_lost_at_the_same_batch(tmp_path):
    bad = "--data.corrupt=[{kind: nan_embedding, batches: [3, 4]}]"
    log = small_run(tmp_path, "charlm_adamw", bad, steps=8)
    assert [math.isnan(loss) for loss in values(log, "train_loss")] == [step >= 3 for step in range(8)]


@pytest.mark.slow
@pytest.mark.parametrize("name", PREVENTING)
def test_it_ends_where_the_baseline_is_lost(name, tmp_path):
    log = full_fit(tmp_path, name)
    assert [step for step, loss in log.scalars["train_loss"] if math.isnan(loss)] == [720, 721]
    assert last(log, "val_loss") < 2.25  # charlm_adamw is at 2.23 to 2.27 in step 700, right before it is lost


# Sophia


def test_sophia_logs_its_win_rate_at_every_tenth_step(tmp_path):
    log = small_run(tmp_path, "charlm_sophia", steps=12)
    assert [step for step, _ in log.scalars["stability/sophia/win_rate"]] == [0, 10]
    assert all(0.0 <= rate <= 1.0 for rate in values(log, "stability/sophia/win_rate"))


@pytest.mark.slow
def test_sophias_win_rate_is_within_the_papers_bounds_once_its_hessian_is_known(tmp_path):
    log = full_fit(tmp_path, "charlm_sophia")
    assert all(0.1 <= rate <= 0.5 for step, rate in log.scalars["stability/sophia/win_rate"] if step >= 100)


# Digits


def test_sam_passes_twice_over_each_batch_and_plain_sgd_once(tmp_path, passes):
    pytest.importorskip("sklearn")
    full_fit(tmp_path / "sam", "digits_sam", "--trainer.max_steps=3")
    assert len(passes) == len(set(passes)) == 6
    passes.clear()
    full_fit(tmp_path / "sgd", "digits_sam", "--trainer.max_steps=3", "--optimizer.rho=0")
    assert len(passes) == 3


def test_agc_trains_a_net_without_norms_at_a_rate_that_ends_it_unclipped(tmp_path):
    pytest.importorskip("sklearn")
    shorter = ("--trainer.max_epochs=2", "--model.width=16")
    clipped = full_fit(tmp_path / "clipped", "digits_agc_norm_free", *shorter)
    unclipped = full_fit(tmp_path / "unclipped", "digits_agc_norm_free", *shorter, "--trainer.callbacks=null")
    assert last(clipped, "val_accuracy") > 0.8
    assert last(unclipped, "val_accuracy") < 0.2
    rates = values(clipped, "stability/transforms/clip_rate/AdaptiveGradientClip")
    assert len(rates) == 88
    assert 0.2 < sum(rates) / len(rates) < 1.0


def test_lamb_moves_each_tensor_by_its_norm_times_the_rate_of_the_warmup(tmp_path, monkeypatch):
    pytest.importorskip("sklearn")
    weights, training_step = [], DigitsClassifier.training_step

    def watched(self, batch, batch_idx=0):
        weights.append([parameter.detach().clone() for parameter in self.parameters()])
        return training_step(self, batch, batch_idx)

    monkeypatch.setattr(DigitsClassifier, "training_step", watched)
    log = full_fit(tmp_path, "digits_large_batch_lamb", "--trainer.max_steps=8", "--data.batch_size=64")
    rates = values(log, "stability/lr")
    assert rates[:6] == pytest.approx([0.07 * step / 6 for step in range(1, 7)])
    for rate, (before, after) in zip(rates, pairwise(weights), strict=False):
        for old, new in zip(before, after, strict=True):
            assert (new - old).norm().item() == pytest.approx(rate * old.norm().item(), rel=1e-3)


@pytest.mark.slow
def test_lamb_reaches_95_percent_in_60_steps_of_1024_digits(tmp_path):
    pytest.importorskip("sklearn")
    assert last(full_fit(tmp_path, "digits_large_batch_lamb"), "val_accuracy") > 0.95


@pytest.mark.slow
def test_agc_reaches_97_percent_at_full_length_and_the_unclipped_run_stays_at_chance(tmp_path):
    pytest.importorskip("sklearn")
    unclipped = full_fit(tmp_path / "unclipped", "digits_agc_norm_free", "--trainer.callbacks=null")
    assert last(full_fit(tmp_path / "clipped", "digits_agc_norm_free"), "val_accuracy") > 0.97
    assert last(unclipped, "val_accuracy") < 0.2
