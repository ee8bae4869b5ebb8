# SPDX-License-Identifier: Apache-2.0
"""A schedule's state in another schedule: the same one, another curve, another length, other batches."""

import warnings

import pytest
import torch

from lightning_stable.schedules import WSD, Cosine, Linear, ProfileLR
from tests.schedules.steps import advance, first_rates, sgd


def test_resuming_in_mid_run_is_exact(tmp_path):
    straight = ProfileLR(sgd(0.1, 0.3), total_steps=30, warmup_steps=5)
    expected = advance(straight, 30)
    first = ProfileLR(sgd(0.1, 0.3), total_steps=30, warmup_steps=5)
    advance(first, 13)
    torch.save((first.state_dict(), first.optimizer.state_dict()), tmp_path / "state.pt")
    state, optimizer_state = torch.load(tmp_path / "state.pt", weights_only=True)
    second = ProfileLR(sgd(0.1, 0.3), warmup_steps=5)
    second.load_state_dict(state)
    second.optimizer.load_state_dict(optimizer_state)
    assert second.total_steps == 30
    assert advance(second, 17) == expected[13:]


def test_a_checkpoint_of_another_curve_and_length_is_taken_up_with_warnings():
    first = ProfileLR(sgd(1.0), Cosine(), total_steps=30)
    advance(first, 10)
    second = ProfileLR(sgd(1.0), Linear(), total_steps=40)
    with pytest.warns(UserWarning, match="The learning-rate schedule") as warned:
        second.load_state_dict(first.state_dict())
    curve, length = (str(warning.message) for warning in warned)
    assert curve.startswith("The learning-rate schedule was saved by ProfileLR(Cosine(), warmup_ste")
    assert length.endswith("has the total_steps that it was given, 40, where its checkpoint has 30.")
    assert second.get_last_lr() == [0.75] == [second.optimizer.param_groups[0]["lr"]]


def test_a_length_that_the_run_was_asked_for_gives_way_to_the_checkpoint_s_and_says_what_to_type():
    first, second = ProfileLR(sgd(1.0), Linear(), 1_234_567), ProfileLR(sgd(1.0), Linear())
    second.total_steps = 2_345_678
    with pytest.warns(UserWarning, match="of its checkpoint, 1234567, where this run's length is 2345678;") as warned:
        second.load_state_dict(first.state_dict())
    assert "`--lr_scheduler.total_steps=2345678`, in YAML `total_steps: 2345678`" in str(warned[0].message)
    assert second.total_steps == 1_234_567


@pytest.mark.parametrize("is_given", [True, False])
def test_no_length_replaces_none(is_given):
    endless = ProfileLR(sgd(1.0), WSD())
    advance(endless, 100)
    second = ProfileLR(sgd(1.0), WSD(), total_steps=200 if is_given else None)
    second.total_steps = 200
    second.load_state_dict(endless.state_dict())
    assert second.total_steps == 200
    assert first_rates(second, 101)[-1] == 0.0
    endless.load_state_dict(second.state_dict())
    assert endless.total_steps == 200


@pytest.mark.parametrize("first_comes", ["optimizer", "scheduler", "only the scheduler"])
def test_loading_sets_the_rates_whatever_was_loaded_first(first_comes):
    first, second = ProfileLR(sgd(1.0), Linear(), 10), ProfileLR(sgd(1.0), Linear(), 10)
    advance(first, 4)
    if first_comes == "optimizer":
        second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    if first_comes == "scheduler":
        second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert second.optimizer.param_groups[0]["lr"] == first.get_last_lr()[0] == 0.6
    longer = ProfileLR(sgd(1.0), Linear(), 20)
    if first_comes != "only the scheduler":
        longer.optimizer.load_state_dict(first.optimizer.state_dict())
    with pytest.warns(UserWarning, match="was given, 20"):
        longer.load_state_dict(first.state_dict())
    assert longer.optimizer.param_groups[0]["lr"] == 0.8


def test_loading_leaves_alone_what_somebody_else_has_set():
    scheduler = ProfileLR(sgd(1.0), Linear(), 10)
    advance(scheduler, 3)
    state = scheduler.state_dict()
    scheduler.optimizer.param_groups[0]["lr"] = 123.0
    scheduler.load_state_dict(state)
    assert scheduler.optimizer.param_groups[0]["lr"] == 123.0
    scheduler.optimizer.add_param_group({"params": [torch.nn.Parameter(torch.zeros(1))]})
    scheduler.load_state_dict(state)  # of fewer groups
    assert [group["lr"] for group in scheduler.optimizer.param_groups] == [123.0, 1.0]


@pytest.mark.parametrize("steps", [1, 5])
def test_a_resume_inside_torch_s_sequential_schedule_is_exact(steps):
    def make():
        optimizer = sgd(1.0)
        constant = torch.optim.lr_scheduler.ConstantLR(optimizer, factor=0.5, total_iters=100)
        schedules = [constant, ProfileLR(optimizer, total_steps=8), ProfileLR(optimizer, "Linear", total_steps=9)]
        return torch.optim.lr_scheduler.SequentialLR(optimizer, schedules, milestones=[2, 4])

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        first, second = make(), make()
        advance(first, steps)
        second.optimizer.load_state_dict(first.optimizer.state_dict())
        second.load_state_dict(first.state_dict())
        second._schedulers[2].total_steps = 10
        second._schedulers[2].total_steps = 9
        assert advance(second, 7) == advance(first, 7)


def test_a_resume_in_epochs_goes_on_in_steps_of_this_run():
    first, second = (ProfileLR(sgd(1.0), Linear(), total_steps=4, unit="epochs", warmup_steps=2) for _ in range(2))
    first.increment, second.increment = 1 / 8, 1 / 2
    advance(first, 8)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert (second.position, second.increment) == (1, 1 / 2)
    assert first_rates(second, 6) == pytest.approx([0.75, 1, 1, 0.75, 0.5, 0.25])


def test_an_unchanged_resume_in_epochs_takes_up_what_the_last_step_was_told():
    """`AdaptiveBatchSize` says before each step what it uses."""
    first, second = (ProfileLR(sgd(1.0), Linear(), total_steps=4, unit="epochs", warmup_steps=2) for _ in range(2))
    first.increment = second.increment = 1 / 8
    advance(first, 3)
    first.increment = 1 / 4
    advance(first, 2)
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    second.load_state_dict(first.state_dict())
    assert second.state_dict() == first.state_dict()
    assert advance(second, 5) == advance(first, 5)


def test_a_resume_goes_on_with_the_same_increment():
    def make():
        return ProfileLR(sgd(1.0), total_steps=1000, unit="samples")

    first, second = make(), make()
    first.increment = 64
    advance(first, 5)
    second.load_state_dict(first.state_dict())
    second.optimizer.load_state_dict(first.optimizer.state_dict())
    assert (second.position, second.increment) == (320, 64)
    assert advance(second, 5) == advance(first, 5)
