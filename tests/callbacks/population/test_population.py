# SPDX-License-Identifier: Apache-2.0
import dataclasses

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.callbacks.population.hyperparameters import Hyperparameters
from lightning_stable.callbacks.population.members import Members
from lightning_stable.callbacks.population.population import Population, Standing
from lightning_stable.callbacks.population.settings import Settings
from tests.callbacks.populations import Net, fit, weights
from tests.faulty_runs import assert_same

SETTINGS = Settings(3, 2, {"lr": [1e-3, 0.1]}, {}, [], "loss", "min", 0.2, 0)


class Owner(Callback):
    """A population without anything around it."""

    def __init__(self, settings=SETTINGS):
        self.settings = settings
        self.generations, self.after = [], []

    def on_train_start(self, trainer, pl_module):
        handles = Hyperparameters("Call", self.settings.space.names, trainer, pl_module)
        members = Members(trainer, pl_module, self, self.settings.population, None)
        self.population = Population(trainer, pl_module, self.settings, members, handles)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            assert self.population.state_dict() == {}
            self.start = weights(pl_module)
        if self.population.begin_batch():
            self.generations.append(trainer.global_step)
        if batch_idx in (2, 4)[: self.settings.population - 1]:
            assert_same(weights(pl_module), self.start)  # everybody begins from there

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.population.turn.end_batch(outputs)
        self.after.append(weights(pl_module))


def test_a_generation_is_a_turn_of_everybody():
    owner = Owner()
    fit(owner, max_steps=13)
    assert owner.generations == [6, 12]
    lineage = owner.population.lineage
    assert [(turn.generation, turn.member) for turn in lineage.turns] == [
        *[(generation, member) for generation in range(2) for member in range(3)],
        (2, 0),
    ]
    assert [turn.global_step for turn in lineage.turns] == [2, 4, 6, 8, 10, 12, 13]
    assert [(turn.begin, turn.end) for turn in lineage.turns] == [(0, 2)] * 3 + [(2, 4)] * 3 + [(4, 5)]
    assert lineage.turns[-1].score is None


def test_a_copy_begins_with_the_weights_of_its_parent():
    begun = {}

    class Look(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            begun[batch_idx] = weights(pl_module)

    owner = Owner()
    fit(owner, callbacks=[Look()], max_steps=12)
    (first, *_) = owner.population.lineage.copies
    assert first.generation == 0
    end_of_parents_turn = 2 * first.parent + 1
    begin_of_copys_turn = 6 + 2 * first.member
    assert_same(begun[begin_of_copys_turn], owner.after[end_of_parents_turn])
    assert owner.population.standings[first.member].steps == 4


@pytest.mark.parametrize("steps", [1, 4, 5, 6, 9])
def test_the_best_is_put_in_at_the_end_and_the_other_kept_as_it_was(steps):
    owner = Owner()
    ends = []

    class End(Callback):
        def on_train_end(self, trainer, pl_module):
            before = weights(pl_module)
            best = owner.population.end()
            ends.append((best, weights(pl_module)))
            state = owner.population.state_dict()
            assert state["best_is_in"]
            kept = state["members"][state["current"]]["parameters"]
            assert_same(kept, before[: len(kept)])

    model, _ = fit(owner, callbacks=[End()], max_steps=steps)
    best, at_the_end = ends[0]
    scores = [standing.score for standing in owner.population.standings]
    assert best == (None if steps == 1 else scores.index(min(score for score in scores if score is not None)))
    assert_same(weights(model), at_the_end)


def test_before_the_first_batch_there_is_no_end():
    class End(Callback):
        def on_train_start(self, trainer, pl_module):
            assert owner.population.end() is None

    owner = Owner()
    fit(owner, callbacks=[End()], max_steps=1)


def test_a_standing_says_what_changed():
    standing = Standing({"lr": 0.1})
    assert dataclasses.replace(standing, score=0.5) == Standing({"lr": 0.1}, 0, 0.5)


def test_its_state_loads_safely(tmp_path):
    owner = Owner(dataclasses.replace(SETTINGS, population=2))

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            state = owner.population.state_dict()
            assert [member is None for member in state["members"]] == [state["current"] == 0, state["current"] == 1]
            torch.save(state, tmp_path / "state.pt")
            assert_same(torch.load(tmp_path / "state.pt", weights_only=True), state)

    fit(owner, Net(), callbacks=[Save()], max_steps=5)
