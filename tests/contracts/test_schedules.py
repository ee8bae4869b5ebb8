# SPDX-License-Identifier: Apache-2.0
"""What every learning-rate schedule owes, asked of each one the room exports."""

import copy
import inspect
import pickle
import random
from collections.abc import Callable

import jsonargparse
import pytest
import torch
from lightning.pytorch.cli import instantiate_class
from torch.optim import Optimizer
from torch.optim.lr_scheduler import LRScheduler

import lightning_stable.schedules as room

STEPS = 20
SCHEDULES = [
    member
    for _, member in inspect.getmembers(room, inspect.isclass)
    if issubclass(member, LRScheduler) and not inspect.isabstract(member)
]


@pytest.fixture(params=SCHEDULES, ids=lambda member: member.__name__)
def kind(request):
    return request.param


def optimizer(*rates):
    return torch.optim.SGD([{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates], lr=1.0)


def advance(scheduler, steps):
    """The rates that `steps` optimizer steps run at."""
    rates = []
    for _ in range(steps):
        rates.append([float(group["lr"]) for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return torch.tensor(rates, dtype=torch.float64)


def test_rates_are_finite_positive_and_at_most_the_base_rate_all_along_the_run(kind):
    rates = advance(kind(optimizer(0.1), total_steps=STEPS), STEPS)
    assert (rates > 0).all()
    assert (rates <= 0.1).all()


def test_resume_equals_an_uninterrupted_run(kind, tmp_path):
    expected = advance(kind(optimizer(0.1, 0.3), total_steps=STEPS), STEPS)
    first = kind(optimizer(0.1, 0.3), total_steps=STEPS)
    advance(first, 9)
    torch.save((first.state_dict(), first.optimizer.state_dict()), tmp_path / "state.pt")
    state, optimizer_state = torch.load(tmp_path / "state.pt", weights_only=True)
    second = kind(optimizer(0.1, 0.3), total_steps=STEPS)
    second.load_state_dict(state)
    second.optimizer.load_state_dict(optimizer_state)
    assert second.state_dict() == first.state_dict()
    assert torch.equal(advance(second, STEPS - 9), expected[9:])


def test_going_back_in_mid_run_repeats_the_same_rates(kind):
    scheduler = kind(optimizer(0.1), total_steps=STEPS)
    advance(scheduler, 5)
    state, optimizer_state = copy.deepcopy((scheduler.state_dict(), scheduler.optimizer.state_dict()))
    once = advance(scheduler, 10)
    scheduler.load_state_dict(state)
    scheduler.optimizer.load_state_dict(optimizer_state)
    assert torch.equal(advance(scheduler, 10), once)


def test_groups_keep_the_ratio_of_their_rates(kind):
    rates = advance(kind(optimizer(0.1, 0.3), total_steps=STEPS), STEPS)
    torch.testing.assert_close(rates[:, 1], 3 * rates[:, 0])


def test_a_rate_that_somebody_scaled_does_not_drift(kind):
    plain, disturbed = (kind(optimizer(0.1), total_steps=STEPS) for _ in range(2))
    for _ in range(STEPS):
        disturbed.optimizer.param_groups[0]["lr"] *= 0.5
        advance(disturbed, 1)
        advance(plain, 1)
        assert disturbed.get_last_lr() == plain.get_last_lr()


def test_it_pickles_in_mid_run(kind):
    scheduler = kind(optimizer(0.1), total_steps=STEPS)
    advance(scheduler, 5)
    twin = pickle.loads(pickle.dumps(scheduler))
    assert torch.equal(advance(twin, 10), advance(scheduler, 10))


def test_it_uses_no_global_randomness(kind):
    python, torch_state = random.getstate(), torch.get_rng_state()
    advance(kind(optimizer(0.1), total_steps=STEPS), STEPS)
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_it_constructs_from_yaml(kind):
    path = f"{kind.__module__}.{kind.__name__}"
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--callable", type=Callable[[Optimizer], LRScheduler])
    parser.add_subclass_arguments(LRScheduler, "subclass", skip={"optimizer"}, instantiate=False)
    config = parser.parse_args(
        [
            f"--callable={path}",
            f"--callable.total_steps={STEPS}",
            f"--subclass={path}",
            f"--subclass.total_steps={STEPS}",
        ]
    )
    instantiate = (
        getattr(parser, "instantiate", None) or parser.instantiate_classes
    )  # the latter until jsonargparse 4.48
    made = instantiate(config)
    lightning_cli = instantiate_class(optimizer(0.1), config.subclass.as_dict())
    for scheduler in (made.callable(optimizer(0.1)), lightning_cli):
        assert type(scheduler) is kind
        assert torch.equal(advance(scheduler, STEPS), advance(kind(optimizer(0.1), total_steps=STEPS), STEPS))
