# SPDX-License-Identifier: Apache-2.0
"""One run: what it shares with all others, and what decides what comes out."""

import math

import pytest
import torch
from torch import nn
from torch.optim.lr_scheduler import ReduceLROnPlateau

from lightning_stable.studies.budget.training import (
    BATCH,
    CHECKS,
    FACTOR,
    MOMENTUM,
    PATIENCE,
    PLATEAU,
    STEPS_PER_EPOCH,
    TEST,
    TRAIN,
    VALIDATION,
    WEIGHT_DECAY,
    Digits,
    _batch,
    evaluate,
    make_optimizer,
    train,
)


@pytest.fixture(scope="module")
def digits():
    return Digits.load()


def test_no_digit_is_in_two_parts(digits):
    assert [len(part[1]) for part in (digits.train, digits.validation, digits.test)] == [TRAIN, VALIDATION, TEST]
    pixels = torch.cat([digits.train[0], digits.validation[0], digits.test[0]])
    assert len(pixels) == 1797
    again = Digits.load()
    assert torch.equal(pixels, torch.cat([again.train[0], again.validation[0], again.test[0]]))


def test_an_epoch_has_every_batch_once_and_depends_on_the_seed_alone():
    batches = torch.cat([_batch(step, seed=1) for step in range(STEPS_PER_EPOCH)])
    assert len(batches.unique()) == STEPS_PER_EPOCH * BATCH
    assert torch.equal(_batch(3, seed=1), _batch(3, seed=1))
    assert not torch.equal(_batch(3, seed=1), _batch(3, seed=2))
    assert not torch.equal(_batch(3, seed=1), _batch(3 + STEPS_PER_EPOCH, seed=1))


@pytest.mark.parametrize(("optimizer", "lr"), [("sgd", 0.1), ("adam", 0.03)])
@pytest.mark.parametrize("schedule", ["REX", "Linear", "Cosine", "Step", "Exponential", "OneCycle", "WSD", PLATEAU])
def test_every_schedule_learns_and_a_run_is_a_function_of_its_arguments(digits, schedule, optimizer, lr):
    arguments = {"schedule": schedule, "optimizer": optimizer, "lr": lr, "budget": 0.5, "epochs": 2, "seed": 0}
    numbers = train(digits, **arguments)
    assert numbers["steps"] == STEPS_PER_EPOCH
    assert numbers["test_loss"] < 2.1 < math.log(10)
    assert numbers["test_error"] < 70.0
    torch.manual_seed(7)
    before = torch.random.get_rng_state()
    assert train(digits, **arguments) == numbers, "whatever was drawn before it"
    assert torch.equal(torch.random.get_rng_state(), before)
    assert train(digits, **{**arguments, "seed": 1}) != numbers


def test_all_schedules_begin_alike(digits):
    """At a learning rate of next to nothing the first weights are all there is."""
    first = [
        train(digits, schedule=schedule, optimizer="sgd", lr=1e-30, budget=0.01, epochs=2, seed=0)["test_loss"]
        for schedule in ("REX", "Cosine", PLATEAU)
    ]
    assert first[0] == first[1] == first[2]


def test_a_budget_is_at_least_one_step(digits):
    numbers = train(digits, schedule="REX", optimizer="sgd", lr=0.1, budget=1e-6, epochs=2, seed=0)
    assert numbers["steps"] == 1


def test_a_run_that_diverges_returns_nan(digits):
    numbers = train(digits, schedule="REX", optimizer="sgd", lr=1e30, budget=0.1, epochs=2, seed=0)
    assert all(math.isnan(numbers[name]) for name in ("validation_error", "test_error", "test_loss"))


@pytest.mark.parametrize("steps", [1, 7, 20, 112, 1400])
def test_the_plateau_is_looked_at_as_often_in_every_run_that_is_long_enough(digits, steps, monkeypatch):
    seen = []
    monkeypatch.setattr(ReduceLROnPlateau, "step", lambda self, loss: seen.append(self))
    monkeypatch.setattr(
        "lightning_stable.studies.budget.training.F.cross_entropy", lambda logits, targets: logits.mean()
    )
    monkeypatch.setattr(
        "lightning_stable.studies.budget.training.conv",
        lambda width, dropout: nn.Sequential(nn.Flatten(), nn.Linear(64, 10)),
    )
    train(digits, schedule=PLATEAU, optimizer="sgd", lr=0.1, budget=steps / (25 * STEPS_PER_EPOCH), epochs=25, seed=0)
    assert len(seen) == min(steps, CHECKS)
    assert (seen[0].factor, seen[0].patience) == (FACTOR, PATIENCE)


def test_the_optimizers_are_those_of_torch():
    network = nn.Linear(2, 2)
    sgd, adam = make_optimizer("sgd", network, 0.1), make_optimizer("adam", network, 0.1)
    assert type(sgd) is torch.optim.SGD
    assert type(adam) is torch.optim.Adam
    assert (sgd.defaults["momentum"], sgd.defaults["weight_decay"]) == (MOMENTUM, WEIGHT_DECAY)


def test_an_evaluation_counts_what_is_wrong_and_leaves_the_network_in_training():
    network = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    network.train()
    pixels, targets = torch.randn(10, 1, 2, 2), torch.tensor([0, 1] * 5)
    wrong = int((network(pixels).argmax(dim=1) != targets).sum())
    assert evaluate(network, (pixels, targets))["error"] == pytest.approx(10.0 * wrong)
    assert network.training
