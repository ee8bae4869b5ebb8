# SPDX-License-Identifier: Apache-2.0

import pytest
import torch
from lightning.pytorch import LightningModule, Trainer
from torch.utils.data import DataLoader, IterableDataset

from lightning_stable._lightning.optimizer_setup import (
    give_length,
    groups_of,
    required_steps_of_the_run,
    scheduled,
    steps_of_the_run,
    takes,
)
from lightning_stable.optim import SPAM
from lightning_stable.schedules import WSD, Cosine, ProfileLR


class Asks(LightningModule):
    """Runs `question` when its optimizer is configured, as the run's length is known then."""

    def __init__(self, question):
        super().__init__()
        self.layer = torch.nn.Linear(2, 1)
        self.question = question
        self.answer = None

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        self.answer = self.question(self, optimizer)
        return optimizer

    def training_step(self, batch, batch_idx):
        return self.layer(batch).square().mean()


class Stream(IterableDataset):
    def __iter__(self):
        return iter(torch.ones(6, 2))


def ask(question, data=None, **settings):
    model = Asks(question)
    quiet = {"logger": False, "enable_checkpointing": False, "enable_progress_bar": False, "accelerator": "cpu"}
    Trainer(enable_model_summary=False, devices=1, **quiet, **settings).fit(
        model, DataLoader(torch.ones(6, 2) if data is None else data)
    )
    return model.answer


def length_given(profile=None, **arguments):
    def question(module, optimizer):
        scheduler = ProfileLR(optimizer, profile or Cosine(), **arguments)
        give_length(module.trainer, scheduler)
        return scheduler.total_steps, scheduler.increment

    return question


@pytest.mark.parametrize(
    ("settings", "steps"),
    [
        ({"max_epochs": 2}, 12),
        ({"max_epochs": 2, "accumulate_grad_batches": 4}, 4),
        ({"max_epochs": 2, "max_steps": 5}, 5),
        ({"max_steps": 7}, 7),
        ({"max_epochs": 1, "limit_train_batches": 3}, 3),
    ],
    ids=str,
)
def test_steps_are_those_of_the_optimizer(settings, steps):
    assert ask(lambda module, _: steps_of_the_run(module.trainer), **settings) == steps
    assert ask(lambda module, _: required_steps_of_the_run(module.trainer, "X"), **settings) == steps


def test_several_optimizers_share_the_steps_that_max_steps_counts():
    assert ask(lambda module, _: steps_of_the_run(module.trainer, several=2), max_steps=8) == 4
    assert ask(lambda module, _: steps_of_the_run(module.trainer, several=2), max_epochs=1) == 6
    for max_steps, steps in ((8, 4), (9, 5), (12, 6), (20, 6)):
        limits = {"max_epochs": 1, "max_steps": max_steps}
        assert ask(lambda module, _: steps_of_the_run(module.trainer, several=2), **limits) == steps


@pytest.mark.parametrize(
    ("arguments", "given"),
    [
        ({}, (12, 1)),
        ({"unit": "epochs"}, (2, 1 / 6)),
        ({"unit": "tokens"}, (None, 1)),
        ({"unit": "samples"}, (None, 1)),
    ],
    ids=str,
)
def test_a_schedule_is_given_the_length_in_its_own_unit(arguments, given):
    assert ask(length_given(**arguments), max_epochs=2) == given


@pytest.mark.parametrize(
    ("settings", "given"),
    [
        ({"max_steps": 12}, (2, 1 / 6)),
        ({"max_steps": 9, "max_epochs": 5}, (1.5, 1 / 6)),
        ({"max_steps": 90, "max_epochs": 5}, (5, 1 / 6)),
        ({"max_steps": 3, "accumulate_grad_batches": 4}, (1.5, 1 / 2)),
        ({"max_epochs": 2, "limit_train_batches": 3}, (2, 1 / 3)),
    ],
    ids=str,
)
def test_epochs_end_with_max_steps_too(settings, given):
    assert ask(length_given(unit="epochs"), **settings) == given


@pytest.mark.parametrize("limit", [None, 5])
def test_a_stream_has_epochs_only_if_they_are_limited(limit):
    settings = {"max_epochs": 2, "limit_train_batches": limit}
    if limit is None:
        with pytest.raises(ValueError, match=r'`ProfileLR\(unit="epochs"\)` needs to know .*limit_train_batches'):
            ask(length_given(unit="epochs"), data=Stream(), **settings)
    else:
        assert ask(length_given(unit="epochs"), data=Stream(), **settings) == (2, 1 / 5)


@pytest.mark.parametrize("settings", [{"max_steps": 0}, {"max_epochs": 1, "limit_train_batches": 0}], ids=str)
@pytest.mark.parametrize("unit", ["steps", "epochs"])
def test_a_run_without_a_step_needs_no_length(settings, unit):
    assert ask(length_given(unit=unit), **settings)[0] is None
    ask(lambda module, _: required_steps_of_the_run(module.trainer, "X"), **settings)


def test_a_module_without_a_trainer_is_told_what_to_set():
    module = Asks(None)
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    with pytest.raises(
        RuntimeError,
        match=r'`ProfileLR` asks the trainer .* and Asks has none yet.*`schedule_args=\{"total_steps": 1000\}`',
    ):
        scheduled(module, optimizer, ProfileLR(optimizer))
    assert scheduled(module, optimizer, ProfileLR(optimizer, total_steps=9))["lr_scheduler"]["interval"] == "step"


def test_a_run_without_end_is_refused_where_the_profile_needs_one():
    endless = {"max_epochs": -1, "max_steps": -1}
    with pytest.raises(ValueError, match=r"`ProfileLR\(total_steps=None\)` takes the length of the run"):
        ask(length_given(), **endless)
    with pytest.raises(ValueError, match=r"`X\(total_steps=None\)` takes the length of the run"):
        ask(lambda module, _: required_steps_of_the_run(module.trainer, "X"), **endless)
    said = {}

    def question(module, optimizer):
        said["length"] = length_given(WSD())(module, optimizer)
        raise KeyError  # the run has no end

    with pytest.raises(KeyError):
        ask(question, **endless)
    assert said["length"] == (None, 1)


def test_a_schedule_is_paired_with_its_optimizer_step_by_step():
    def question(module, optimizer):
        return scheduled(module, optimizer, ProfileLR(optimizer))

    answer = ask(question, max_epochs=1)
    assert answer["lr_scheduler"]["interval"] == "step"
    assert answer["lr_scheduler"]["scheduler"].total_steps == 6


def test_epochs_are_counted_also_where_their_number_is_given():
    def question(module, optimizer):
        return scheduled(module, optimizer, ProfileLR(optimizer, total_steps=5, unit="epochs"))

    scheduler = ask(question, max_epochs=1)["lr_scheduler"]["scheduler"]
    assert (scheduler.total_steps, scheduler.increment) == (5, 1 / 6)


def test_groups_leave_out_what_is_frozen_and_decay_what_is_a_weight():
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.LayerNorm(4), torch.nn.Linear(4, 2))
    model[0].weight.requires_grad = False
    assert len(groups_of(model, torch.optim.AdamW, None)) == 5
    groups = groups_of(model, torch.optim.AdamW, 0.1)
    assert [(group["weight_decay"], len(group["params"]), "name" in group) for group in groups] == [
        (0.1, 1, False),
        (0.0, 4, False),
    ]
    lazy = torch.nn.Sequential(torch.nn.LazyLinear(3))
    assert len(groups_of(lazy, torch.optim.AdamW, 0.1)) == 2
    layered = groups_of(model, torch.optim.AdamW, 0.1, lr=1.0, layer_decay=0.5)
    assert all("name" in group for group in layered)


def test_constructors_are_asked_for_their_arguments():
    assert takes(SPAM, "weight_decay")
    assert not takes(torch.optim.LBFGS, "weight_decay")
