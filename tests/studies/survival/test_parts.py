# SPDX-License-Identifier: Apache-2.0
"""What a side is made of, and that it is what the bundled recipes have."""

import pytest
import yaml
from lightning.pytorch.callbacks import Callback

from lightning_stable.guard import SpikeGuard
from lightning_stable.studies.recipes import find_recipe
from lightning_stable.studies.survival.parts import (
    CHECKPOINT_EVERY,
    SNAPSHOT_EVERY,
    detectors,
    parts_of,
)
from lightning_stable.studies.survival.sides import SIDES
from lightning_stable.testbeds import CharLM


@pytest.fixture
def model():
    return CharLM(n_layer=1, n_head=2, d_model=8, context=4, lr=2e-3)


def recipe(name):
    return yaml.safe_load(find_recipe(name).path.read_text(encoding="utf-8"))


def callback(recipe, name):
    [found] = [one for one in recipe["trainer"]["callbacks"] if one["class_path"].endswith(f".{name}")]
    return found["init_args"]


@pytest.mark.parametrize("side", SIDES)
def test_every_side_has_the_rate_and_the_decay_of_the_model(side, model):
    decayed, plain = parts_of(side, steps=40).optimizer(model).param_groups
    assert decayed["lr"] == plain["lr"] == 2e-3
    assert (decayed["weight_decay"], plain["weight_decay"]) == (0.1, 0.0)
    assert all(isinstance(one, Callback) for one in parts_of(side, steps=40).callbacks)


@pytest.mark.parametrize("side", SIDES)
def test_callbacks_are_fresh(side):
    first, second = parts_of(side, steps=40).callbacks, parts_of(side, steps=40).callbacks
    assert not set(map(id, first)) & set(map(id, second))


def test_guards_have_the_detectors_and_the_numbers_of_the_recipe():
    wanted = callback(recipe("charlm_stable"), "SpikeGuard")
    ours = detectors()
    assert list(ours) == list(wanted["watch"])
    for signal, detector in wanted["watch"].items():
        assert detector["class_path"].endswith(f".{type(ours[signal]).__name__}")
        assert {name: vars(ours[signal])[name] for name in detector["init_args"]} == detector["init_args"]
    assert set(wanted) == {"watch", "snapshot_every"}
    assert CHECKPOINT_EVERY == SNAPSHOT_EVERY == wanted["snapshot_every"]


def test_the_full_recipe_has_the_guards_own_ladder():
    rungs = parts_of("full", steps=40).callbacks[0].ladder.rungs
    assert [vars(rung) for rung in rungs] == [vars(rung) for rung in SpikeGuard().ladder.rungs]


@pytest.mark.parametrize("side", ["guard_skip", "guard_rollback", "guard_rollback_skip"])
def test_one_kind_of_response_does_not_give_up(side):
    *_, last, halt = parts_of(side, steps=40).callbacks[0].ladder.rungs
    assert last.times == 40
    assert halt.halts


@pytest.mark.parametrize("side", ["spam", "stable_spam"])
def test_other_optimizers_have_the_numbers_of_their_recipe_but_for_what_depends_on_the_length(side, model):
    wanted = recipe(f"charlm_{side}")["optimizer"]["init_args"]
    group = parts_of(side, steps=40).optimizer(model).param_groups[0]
    of_the_length = {"reset_interval": 20, "reset_warmup": 2, "total_steps": 40}
    for name in set(wanted) - {"lr", "betas"}:
        assert group[name] == of_the_length.get(name, wanted[name]), name
    assert list(group["betas"]) == wanted["betas"]


def test_momentum_is_reset_at_the_same_step_by_all_who_do(model):
    intervals = [
        parts_of(side, 400).optimizer(model).param_groups[0]["reset_interval"] for side in ("spam", "stable_spam")
    ]
    reset = parts_of("full", 400).callbacks[1]
    assert {*intervals, reset.every_n_steps} == {200}


def test_an_unknown_side_is_refused():
    with pytest.raises(KeyError):
        parts_of("sgd", steps=40)
