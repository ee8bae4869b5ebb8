# SPDX-License-Identifier: Apache-2.0
import json

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.callbacks import ReplayPopulation
from lightning_stable.callbacks.population.lineage import write_schedule
from tests.callbacks.populations import Net, fit, pbt, weights
from tests.faulty_runs import assert_same

SEGMENTS = [
    {"step": 0, "hyperparameters": {"lr": 0.04, "module.scale": 2.0}},
    {"step": 3, "hyperparameters": {"lr": 0.01, "module.scale": 0.5}},
    {"step": 7, "hyperparameters": {"lr": 0.03, "module.scale": 1.5}},
]


@pytest.fixture
def path(tmp_path):
    write_schedule(tmp_path / "schedule.json", SEGMENTS, steps=10)
    return str(tmp_path / "schedule.json")


def expected(step, schedule=True):
    values = [segment for segment in SEGMENTS if segment["step"] <= step][-1]["hyperparameters"]
    return values["lr"] / (1 + 0.1 * step if schedule else 1), values["module.scale"]


@pytest.mark.parametrize("schedule", [True, False])
@pytest.mark.parametrize("accumulate", [1, 3])
def test_values_are_in_force_from_their_step_on(path, schedule, accumulate):
    model = Net(schedule=schedule)
    fit(ReplayPopulation(path), model, max_steps=10, accumulate_grad_batches=accumulate)
    for index, (_, rate, scale) in enumerate(model.seen):
        assert (rate, scale) == pytest.approx(expected(index // accumulate, schedule), rel=1e-12)


@pytest.mark.parametrize("saved_at", [1, 2, 3, 4, 7, 9])
def test_resume_equals_an_uninterrupted_run(path, saved_at, tmp_path):
    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == saved_at:
                trainer.save_checkpoint(tmp_path / "mid.ckpt")

    straight, _ = fit(ReplayPopulation(path), Net(), callbacks=[Save()], max_steps=10)
    resumed, _ = fit(ReplayPopulation(path), Net(), ckpt_path=tmp_path / "mid.ckpt", max_steps=10)
    assert_same(weights(resumed), weights(straight))
    assert resumed.seen == straight.seen[saved_at:]


class DecaysWeights(Net):
    """Biases have no weight decay."""

    def __init__(self):
        super().__init__()
        self.decays = []

    def training_step(self, batch, batch_idx):
        self.decays.append([group["weight_decay"] for group in self.optimizers().optimizer.param_groups])
        return super().training_step(batch, batch_idx)

    def configure_optimizers(self):
        weights, biases = ([p for p in self.parameters() if (p.ndim > 1) == is_weight] for is_weight in (True, False))
        return torch.optim.AdamW([{"params": weights, "weight_decay": 0.1}, {"params": biases, "weight_decay": 0.0}])


def test_a_group_without_decay_has_none_behind_a_step_without_any_nor_in_a_resumed_run(tmp_path):
    segments = [{"step": step, "hyperparameters": {"weight_decay": 0.01 * (step > 0)}} for step in (0, 4)]
    write_schedule(tmp_path / "decay.json", segments, steps=6)
    follow = str(tmp_path / "decay.json")
    straight, _ = fit(ReplayPopulation(follow), DecaysWeights(), max_steps=6)
    assert straight.decays == [[0.0, 0.0]] * 4 + [[0.01, 0.0]] * 2
    _, trainer = fit(ReplayPopulation(follow), DecaysWeights(), max_steps=2)
    trainer.save_checkpoint(tmp_path / "mid.ckpt")
    resumed, _ = fit(ReplayPopulation(follow), DecaysWeights(), ckpt_path=tmp_path / "mid.ckpt", max_steps=6)
    assert resumed.decays == straight.decays[2:]


def test_it_follows_what_a_population_has_found(tmp_path):
    search = pbt(search={"lr": [1e-3, 0.1], "weight_decay": [0.01, 1.0]}, folder=str(tmp_path))
    fit(search, Net(schedule=False), max_steps=36)
    found = json.loads((tmp_path / "schedule.json").read_text())
    assert found["steps"] == 12
    model = Net(schedule=False)
    fit(ReplayPopulation(str(tmp_path / "schedule.json")), model, max_steps=12)
    for step, (_, rate, _) in enumerate(model.seen):
        values = [one for one in found["segments"] if one["step"] <= step][-1]["hyperparameters"]
        assert rate == values["lr"]


def test_a_search_of_one_line_and_its_replay_are_the_same_run(tmp_path):
    """The line of the best, trained once more on the batches of that line, comes to the same weights."""
    search = pbt(folder=str(tmp_path), initial=[{"lr": 0.02}, {"lr": 0.01}, {"lr": 0.003}])
    straight, _ = fit(search, max_steps=24)
    record = json.loads((tmp_path / "pbt.json").read_text())
    line = line_of(record)
    from tests.callbacks.populations import make_samples

    samples = [
        sample for turn in line for sample in make_samples()[4 * (turn["global_step"] - 2) : 4 * turn["global_step"]]
    ]
    replayed, _ = fit(ReplayPopulation(str(tmp_path / "schedule.json")), samples=samples, max_steps=8)
    for one, other in zip(weights(replayed), weights(straight), strict=True):
        assert torch.allclose(one, other, rtol=1e-5, atol=1e-7)


def line_of(record):
    member, line = record["best"], []
    for generation in range(3, -1, -1):
        for copy in record["copies"]:
            if (copy["generation"], copy["member"]) == (generation, member):
                member = copy["parent"]
                break
        line += [turn for turn in record["turns"] if (turn["generation"], turn["member"]) == (generation, member)]
    return line[::-1]


def test_without_a_path_it_follows_nothing():
    plain, _ = fit(None, Net(), max_steps=4)
    model, _ = fit(ReplayPopulation(), Net(), max_steps=4)
    assert_same(weights(model), weights(plain))


def test_what_cannot_be_followed_is_refused(path, tmp_path):
    class TwoOptimizers(Net):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def configure_optimizers(self):
            return [
                torch.optim.SGD(self.layers[0].parameters(), 0.1),
                torch.optim.SGD(self.layers[3].parameters(), 0.1),
            ]

    with pytest.raises(RuntimeError, match="there are 2"):
        fit(ReplayPopulation(path), TwoOptimizers())
    with pytest.raises(OSError, match="nowhere"):
        fit(ReplayPopulation(str(tmp_path / "nowhere.json")))
    (tmp_path / "other.json").write_text("{}")
    with pytest.raises(ValueError, match=r"other\.json"):
        fit(ReplayPopulation(str(tmp_path / "other.json")))
    write_schedule(tmp_path / "odd.json", [{"step": 0, "hyperparameters": {"mass": 1.0}}], 1)
    with pytest.raises(ValueError, match="no hyper-parameter 'mass'"):
        fit(ReplayPopulation(str(tmp_path / "odd.json")))
