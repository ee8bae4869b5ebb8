# SPDX-License-Identifier: Apache-2.0
"""Tiny runs of every side: who is lost, who is not, and what they say of it."""

import math

import pytest
import torch

from lightning_stable.studies.survival.parts import Parts, parts_of
from lightning_stable.studies.survival.run_numbers import Size
from lightning_stable.studies.survival.sides import SIDES
from lightning_stable.studies.survival.streams import Stream
from lightning_stable.studies.survival.trial import Training, run_one

TINY = Size(n_layer=1, d_model=8, context=8, batch_size=2, val_batches=1)
STEPS = 12
NAN = Stream("nan_embedding", 0.1, steps=STEPS)
NAMES = {"loss", "steps_lost", "seconds_lost", "answers", "ended_early", "fit_seconds"}


@pytest.fixture(scope="module")
def on_nan():
    return {side: run_one(side, NAN, seed=0, size=TINY) for side in SIDES}


def test_one_nan_loses_whoever_has_no_answer_to_it(on_nan):
    lost = {side for side, numbers in on_nan.items() if math.isnan(numbers["loss"])}
    assert lost == {"adamw", "clip", "agc", "z_score_clip", "sigma_skip"}


def test_every_side_says_the_same_things(on_nan):
    assert all(set(numbers) == NAMES for numbers in on_nan.values())
    assert all(isinstance(value, float) for numbers in on_nan.values() for value in numbers.values())


def test_what_is_lost_is_what_the_answer_throws_away(on_nan):
    [bad] = NAN.bad_batches(seed=0)["nan_embedding"]
    assert on_nan["guard_skip"]["steps_lost"] == 1
    assert on_nan["guard_rollback"]["steps_lost"] == on_nan["guard_rollback_skip"]["steps_lost"] == bad + 1
    assert on_nan["restart"]["steps_lost"] == bad + 1
    assert on_nan["adamw"]["steps_lost"] == on_nan["spam"]["steps_lost"] == 0
    for side in ("guard_skip", "guard_rollback", "guard_rollback_skip", "restart", "full"):
        assert on_nan[side]["seconds_lost"] > 0
        assert (on_nan[side]["answers"], on_nan[side]["ended_early"]) == (1, 0)


def test_rollback_with_replay_ends_where_skipping_does(on_nan):
    assert on_nan["guard_rollback"]["loss"] == on_nan["guard_skip"]["loss"]


def test_a_run_is_a_function_of_its_trial(on_nan):
    torch.manual_seed(123)
    again = run_one("guard_skip", NAN, seed=0, size=TINY)
    assert again["loss"] == on_nan["guard_skip"]["loss"]
    assert run_one("guard_skip", NAN, seed=1, size=TINY)["loss"] != again["loss"]


def test_a_guard_that_halts_ends_early_and_is_validated(monkeypatch):
    from lightning_stable.guard import Halt, SpikeGuard
    from lightning_stable.studies.survival import parts

    monkeypatch.setitem(parts.BUILDERS, "halts", lambda steps: Parts(callbacks=[SpikeGuard(ladder=[Halt()])]))
    numbers = run_one("halts", NAN, seed=0, size=TINY)
    assert numbers["ended_early"] == 1
    assert math.isfinite(numbers["loss"])


def test_sides_that_meet_no_spike_are_plain_adamw():
    clean = Stream(steps=STEPS)
    losses = [run_one(side, clean, seed=0, size=TINY)["loss"] for side in ("adamw", "sigma_skip", "guard_skip")]
    assert losses[0] == losses[1] == losses[2]


def begun(tmp_path, side, drop=()):
    return Training(parts_of(side, STEPS), NAN, seed=0, size=TINY).begin(tmp_path, drop, [])


def test_weights_and_data_are_the_same_for_all_sides(tmp_path):
    _, first, data = begun(tmp_path, "adamw")
    for side in ("spam", "full"):
        _, other, others = begun(tmp_path, side)
        assert all(torch.equal(value, other.state_dict()[name]) for name, value in first.state_dict().items())
        for batch, same in zip(data.train_dataloader(), others.train_dataloader(), strict=True):
            assert torch.equal(batch["tokens"], same["tokens"])
            assert torch.equal(batch["embedding_scale"].isnan(), same["embedding_scale"].isnan())


@pytest.mark.parametrize("side", ["adamw", "spam", "stable_spam", "full"])
def test_all_sides_have_one_schedule(tmp_path, side):
    _, model, _ = begun(tmp_path, side)
    found = model.configure_optimizers()
    schedule = found["lr_scheduler"]["scheduler"]
    assert found["lr_scheduler"]["interval"] == "step"
    rates = []
    for _ in range(STEPS + 1):
        rates.append(found["optimizer"].param_groups[0]["lr"])
        found["optimizer"].step()
        schedule.step()
    assert max(rates) == TINY.lr
    assert rates[-1] == 0.0


def test_the_bad_batches_are_those_of_the_stream(tmp_path):
    _, _, data = begun(tmp_path, "adamw")
    bad = [index for index, batch in enumerate(data.train_dataloader()) if batch["embedding_scale"].isnan().any()]
    assert bad == NAN.bad_batches(seed=0)["nan_embedding"]


def test_nothing_is_printed(capsys, caplog):
    run_one("guard_skip", NAN, seed=0, size=TINY)
    assert capsys.readouterr().out == ""
    assert "SpikeGuard" not in caplog.text
