# SPDX-License-Identifier: Apache-2.0
import copy
import json
import math

import pytest
import torch
from lightning.pytorch import Callback, LightningModule
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.loggers import CSVLogger
from torch.utils.data import DataLoader

from lightning_stable.callbacks import PopulationBasedTraining
from tests.callbacks.populations import Net, StatefulLoader, fit, make_samples, pbt, samples_of, weights
from tests.faulty_runs import assert_same


class Toy(LightningModule):
    """Q = 1.2 - theta0^2 - theta1^2, trained by 1.2 - h0 theta0^2 - h1 theta1^2."""

    def __init__(self, h0=1.0, h1=1.0):
        super().__init__()
        self.theta = torch.nn.Parameter(torch.tensor([0.9, 0.9]))
        self.h0, self.h1 = h0, h1

    def training_step(self, batch, batch_idx):
        self.log("q", self.q())
        return -(1.2 - self.h0 * self.theta[0] ** 2 - self.h1 * self.theta[1] ** 2)

    def q(self):
        return 1.2 - self.theta.detach().double().square().sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.02)

    def validation_step(self, batch, batch_idx):
        """There is nothing to validate."""


def fit_toy(model, callback, steps=400):
    fit(callback, model, loader=DataLoader(torch.zeros(1000, 1)), max_steps=steps, limit_val_batches=0)
    return float(model.q())


# What the paper claims


@pytest.mark.parametrize("seed", range(3))
def test_the_papers_toy_problem(seed):
    beginnings = [{"module.h0": 1.0, "module.h1": 0.0}, {"module.h0": 0.0, "module.h1": 1.0}]
    search = PopulationBasedTraining(
        {"module.h0": [0.0, 1.0], "module.h1": [0.0, 1.0]},
        population=2,
        interval=4,
        monitor="q",
        mode="max",
        initial=beginnings,
        seed=seed,
    )
    assert fit_toy(Toy(), search) >= 1.18
    grid = [fit_toy(Toy(*beginning.values()), None, steps=200) for beginning in beginnings]
    assert grid == pytest.approx([0.39, 0.39], abs=0.01)


# Members


@pytest.mark.parametrize("optimizer", [torch.optim.AdamW, torch.optim.SGD, torch.optim.NAdam])
def test_a_member_ends_as_if_it_had_been_trained_alone_on_its_batches(optimizer):
    rates = [0.03, 0.02, 0.01]
    search = pbt(initial=[{"lr": rate} for rate in rates], interval=2, fraction=0.2, mode="max")
    states = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx % 2:
                states.append((weights(pl_module), copy.deepcopy(pl_module.optimizers().optimizer.state_dict())))

    fit(search, Net(kind=optimizer), callbacks=[Look()], max_steps=6)
    for member, rate in enumerate(rates):
        alone = Net(kind=lambda parameters, lr, rate=rate: optimizer(parameters, lr=rate))
        fit(None, alone, samples=samples_of([member]), max_steps=2)
        assert_same(states[member][0], weights(alone))
        assert_same(states[member][1]["state"], alone.optimizers().optimizer.state_dict()["state"])


def test_members_that_never_copy_go_on_from_turn_to_turn_as_if_they_were_alone():
    rates = [0.03, 0.02]
    search = pbt(population=2, initial=[{"lr": rate} for rate in rates])
    search.settings.__class__.select = lambda self, scores, generation: []  # restored by the fixture below
    model, _ = fit(search, max_steps=12)
    best = min(search.state_dict()["standings"], key=lambda standing: standing["score"])
    member = search.state_dict()["standings"].index(best)
    alone = Net(kind=lambda parameters, lr: torch.optim.AdamW(parameters, lr=rates[member]))
    fit(None, alone, samples=samples_of([member, member + 2, member + 4]), max_steps=6)
    assert_same(weights(model), weights(alone))


@pytest.fixture(autouse=True)
def _selection_is_put_back():
    from lightning_stable.callbacks.population.settings import Settings

    select = Settings.select
    yield
    Settings.select = select


def test_the_worst_copies_the_best_with_its_schedule_and_tries_another_rate(tmp_path):
    model = Net()
    search = pbt(initial=[{"lr": 0.01}, {"lr": 1e-3}, {"lr": 0.1}], folder=str(tmp_path))
    fit(search, model, max_steps=12)
    record = json.loads((tmp_path / "pbt.json").read_text())
    assert search.best == record["best"] is not None
    scores = [turn["score"] for turn in record["turns"][:3]]
    copied = record["copies"][0]
    assert copied["member"] == scores.index(max(scores))
    assert copied["parent"] == scores.index(min(scores))
    assert copied["hyperparameters"]["lr"] != record["turns"][copied["parent"]]["hyperparameters"]["lr"]
    rates = [rate for _, rate, _ in model.seen]
    for generation in range(2):  # two turns of each: the schedule has gone on in its own turns only
        for member in range(3):
            base = record["turns"][3 * generation + member]["hyperparameters"]["lr"]
            first = 6 * generation + 2 * member
            expected = [base / (1 + 0.1 * (2 * generation + step)) for step in range(2)]
            assert rates[first : first + 2] == pytest.approx(expected, rel=1e-12)


def test_every_batch_is_trained_on_once_in_its_order():
    model = Net()
    fit(pbt(), model, max_steps=24)
    assert [index for index, _, _ in model.seen] == [4.0 * batch for batch in range(24)]


def test_an_attribute_of_the_module_is_each_members_own():
    model = Net()
    search = pbt(search=None, choices={"module.scale": [0.5, 1.0, 2.0]}, population=2, interval=3)
    fit(search, model, max_steps=6)
    own = [standing["hyperparameters"]["module.scale"] for standing in search.state_dict()["standings"]]
    assert [scale for _, _, scale in model.seen] == [own[0]] * 3 + [own[1]] * 3
    assert model.scale == own[search_best(search)]


def search_best(search):
    scores = [standing["score"] for standing in search.state_dict()["standings"]]
    return scores.index(min(scores))


@pytest.mark.parametrize("settings", [{"accumulate_grad_batches": 2}, {"precision": "bf16-mixed"}], ids=str)
def test_turns_count_optimizer_steps(settings):
    model = Net()
    search = pbt(population=2, interval=3, initial=[{"lr": 0.01}, {"lr": 0.02}])
    _, trainer = fit(search, model, max_steps=12, **settings)
    assert trainer.global_step == 12
    per_step = settings.get("accumulate_grad_batches", 1)
    bases = [rate * (1 + 0.1 * (index // per_step % 3)) for index, (_, rate, _) in enumerate(model.seen)]
    assert bases[: 6 * per_step] == pytest.approx([0.01] * 3 * per_step + [0.02] * 3 * per_step)


# Scores


def test_a_member_that_diverges_is_replaced(tmp_path):
    class Breaks(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss * float("nan") if self.scale == 2.0 else loss

    model = Breaks()
    initial = [{"module.scale": 2.0}, {"module.scale": 1.0}, {"module.scale": 2.0}, {"module.scale": 1.0}]
    search = pbt(search={"module.scale": [0.5, 3.0]}, population=4, initial=initial, folder=str(tmp_path))
    fit(search, model, max_steps=16)
    record = json.loads((tmp_path / "pbt.json").read_text())
    assert {one["member"] for one in record["copies"] if one["generation"] == 0} == {0, 2}
    assert [turn["score"] is None for turn in record["turns"][:4]] == [True, False, True, False]
    assert all(turn["score"] is not None for turn in record["turns"][4:])
    assert all(tensor.isfinite().all() for tensor in weights(model))
    assert (tmp_path / "pbt.png").is_file()


def test_where_all_diverge_the_run_ends_as_a_plain_one_does(tmp_path):
    class Breaks(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * float("nan")

    _, trainer = fit(pbt(folder=str(tmp_path)), Breaks(), max_steps=12)
    assert trainer.global_step == 12
    assert json.loads((tmp_path / "pbt.json").read_text())["best"] is None
    assert not (tmp_path / "schedule.json").exists()


def test_a_validation_at_the_end_of_each_turn_scores_it(tmp_path):
    seen = []

    class Look(Callback):
        def on_validation_end(self, trainer, pl_module):
            seen.append(float(trainer.callback_metrics["val_loss"]))

    search = pbt(monitor="val_loss", folder=str(tmp_path))
    model, _ = fit(search, callbacks=[Look()], max_steps=12, val_check_interval=2, check_val_every_n_epoch=None)
    record = json.loads((tmp_path / "pbt.json").read_text())
    assert [turn["score"] for turn in record["turns"]] == seen
    loss = torch.stack([model.validation_loss(batch) for batch in DataLoader(make_samples()[:20], 10)]).mean()
    assert float(loss) == pytest.approx(min(seen[-3:]), rel=1e-5)  # the best member is in the module


def test_a_sanity_check_scores_nobody():
    search = pbt(monitor="val_loss", interval=1)
    fit(search, max_steps=2, num_sanity_val_steps=1, val_check_interval=50)
    assert [standing["score"] for standing in search.state_dict()["standings"]] == [None] * 3


def test_a_run_that_is_too_short_for_one_turn_ends_as_it_is(tmp_path):
    search = pbt(interval=100, folder=str(tmp_path))
    fit(search, max_steps=4)
    assert json.loads((tmp_path / "pbt.json").read_text())["best"] is None
    assert sorted(path.name for path in tmp_path.iterdir()) == ["pbt.json"]


@pytest.mark.parametrize("settings", [{"val_check_interval": 4}, {"limit_val_batches": 0}], ids=str)
def test_a_key_that_is_never_logged_is_refused_with_what_there_is(settings):
    with pytest.raises(ValueError, match=r"monitor='val_los'\)` has found no such value .*train_loss"):
        fit(pbt(monitor="val_los"), max_steps=12, **settings)


# The end


def test_checkpoints_of_the_latest_model_hold_the_best_member(tmp_path):
    latest = ModelCheckpoint(tmp_path / "latest", save_last=True, every_n_train_steps=1)
    best = ModelCheckpoint(tmp_path / "best", monitor="train_loss", save_last="link", every_n_train_steps=1)
    model, _ = fit(pbt(), callbacks=[latest, best], enable_checkpointing=True, max_steps=12)
    paths = [latest.best_model_path, latest.last_model_path, best.last_model_path]
    for path in paths:
        state = torch.load(path, weights_only=True)["state_dict"]
        assert_same(state, model.state_dict())
    kept = torch.load(best.best_model_path, weights_only=True)  # the best of many is left alone
    assert kept["global_step"] != 12 or not torch.equal(kept["state_dict"]["layers.0.weight"], model.layers[0].weight)


def test_the_files_are_in_the_loggers_folder(tmp_path):
    logger = CSVLogger(tmp_path, name="run", version=0)
    fit(pbt(), logger=logger, max_steps=12, log_every_n_steps=1)
    folder = tmp_path / "run" / "version_0"
    assert {"pbt.json", "pbt.png", "schedule.json"} <= {path.name for path in folder.iterdir()}
    logged = (folder / "metrics.csv").read_text()
    assert all(f"stability/pbt/score/{member}" in logged for member in range(3))
    assert all(f"stability/pbt/lr/{member}" in logged for member in range(3))


def test_without_a_logger_nothing_is_written(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    fit(pbt(), max_steps=6)
    assert not list(tmp_path.iterdir())


# Interrupted is uninterrupted


SETTINGS = {
    "plain": ({}, {}, {}),
    "validated": ({"monitor": "val_loss"}, {}, {"val_check_interval": 2, "check_val_every_n_epoch": None}),
    "dropout": ({}, {"dropout": 0.4}, {}),
    "attribute": ({"search": {"module.scale": [0.5, 2.0], "weight_decay": [1e-3, 1.0]}}, {}, {}),
    "accumulated": ({}, {}, {"accumulate_grad_batches": 2, "max_steps": 12}),
}


@pytest.mark.parametrize("saved_at", [1, 2, 5, 6, 7, 11])
@pytest.mark.parametrize("name", SETTINGS)
def test_resume_equals_an_uninterrupted_run(name, saved_at, tmp_path):
    arguments, of_net, settings = SETTINGS[name]
    path = tmp_path / "mid.ckpt"

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            per_step = settings.get("accumulate_grad_batches", 1)
            if batch_idx + 1 == saved_at * per_step:
                trainer.save_checkpoint(path)

    whole = {"max_steps": 18, **settings}
    straight, _ = fit(pbt(folder=str(tmp_path / "a"), **arguments), Net(**of_net), callbacks=[Save()], **whole)
    torch.manual_seed(99)
    resumed = Net(**of_net)
    torch.rand(5)
    fit(pbt(folder=str(tmp_path / "b"), **arguments), resumed, ckpt_path=path, **whole)
    assert_same(weights(resumed), weights(straight))
    assert resumed.scale == straight.scale
    for file in ("schedule.json", "pbt.json"):
        assert (tmp_path / "a" / file).read_text() == (tmp_path / "b" / file).read_text()


@pytest.mark.parametrize("ended_at", [3, 6, 9])
def test_a_run_that_has_ended_goes_on_where_it_was_and_not_with_the_best(ended_at, tmp_path):
    straight, _ = fit(pbt(), max_steps=18)
    _, trainer = fit(pbt(), max_steps=ended_at)
    trainer.save_checkpoint(tmp_path / "end.ckpt")
    resumed, _ = fit(pbt(), max_steps=18, ckpt_path=tmp_path / "end.ckpt")
    assert_same(weights(resumed), weights(straight))


def test_a_checkpoint_holds_every_member_once_and_loads_safely(tmp_path):
    sizes = {}
    for population in (2, 6):
        _, trainer = fit(pbt(population=population), max_steps=1)
        trainer.save_checkpoint(tmp_path / "all.ckpt")
        state = torch.load(tmp_path / "all.ckpt", weights_only=True)
        sizes[population] = len(state["callbacks"]["PopulationBasedTraining"]["members"])
    assert sizes == {2: 2, 6: 6}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"population": 4}, "it has 3 members, and `population` is 4"),
        ({"search": {"weight_decay": [0.1, 0.2]}}, "it searches lr"),
    ],
)
def test_a_checkpoint_of_another_population_is_refused(arguments, message, tmp_path):
    _, trainer = fit(pbt(), max_steps=3)
    trainer.save_checkpoint(tmp_path / "mid.ckpt")
    with pytest.raises(ValueError, match=message):
        fit(pbt(**arguments), ckpt_path=tmp_path / "mid.ckpt")


@pytest.mark.parametrize(
    "spoil",
    [
        lambda state: state.pop("members"),
        lambda state: state.update(members=[None]),
        lambda state: state.update(current=7),
        lambda state: state.update(current="0"),
        lambda state: state["members"][1].update(parameters=[]),
        lambda state: state["members"][1]["parameters"].__setitem__(0, torch.zeros(1)),
        lambda state: state["members"][1]["around"].update(buffers=[]),
        lambda state: state["members"][1]["optimizers"][0].update({99: {"exp_avg": torch.zeros(1)}}),
        lambda state: state["standings"].__setitem__(0, {"lr": 1.0}),
        lambda state: state["lineage"].update(turns=[{"generation": 0}]),
        lambda state: state.update(turn={}),
        lambda state: state.update(random=None),
    ],
    ids=range(12),
)
def test_a_damaged_state_is_refused_by_its_name(spoil, tmp_path):
    _, trainer = fit(pbt(), max_steps=3)
    trainer.save_checkpoint(tmp_path / "mid.ckpt")
    checkpoint = torch.load(tmp_path / "mid.ckpt", weights_only=True)
    spoil(checkpoint["callbacks"]["PopulationBasedTraining"])
    torch.save(checkpoint, tmp_path / "mid.ckpt")
    with pytest.raises(ValueError, match="PopulationBasedTraining"):
        fit(pbt(), ckpt_path=tmp_path / "mid.ckpt")


@pytest.mark.filterwarnings("ignore:Checkpoint directory .* exists and is not empty")
def test_a_run_that_breaks_off_leaves_its_lineage_and_can_be_resumed(tmp_path):
    class Breaks(Net):
        def training_step(self, batch, batch_idx):
            if batch_idx == 9:
                raise KeyError("on purpose")
            return super().training_step(batch, batch_idx)

    saver = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1)
    search = pbt(folder=str(tmp_path))
    with pytest.raises(KeyError, match="on purpose"):
        fit(search, Breaks(), callbacks=[saver], enable_checkpointing=True, max_steps=18)
    assert len(json.loads((tmp_path / "pbt.json").read_text())["turns"]) == 5
    straight, _ = fit(pbt(), max_steps=18)
    again = ModelCheckpoint(tmp_path / "kept", every_n_train_steps=1)
    path, settings = saver.best_model_path, {"enable_checkpointing": True, "max_steps": 18}
    resumed, _ = fit(pbt(), callbacks=[again], ckpt_path=path, **settings)
    assert_same(weights(resumed), weights(straight))


# Arguments


def test_it_takes_what_it_needs_and_not_more_than_it_may():
    with pytest.raises(
        ValueError, match=r"max_bytes=\.\.\.\)` allows 1,000 bytes, and a `population` of 3 needs about"
    ):
        fit(pbt(max_bytes=1000))
    fit(pbt(max_bytes=10_000_000), max_steps=2)
    for bad in (-1, math.nan, True):
        with pytest.raises(ValueError, match="max_bytes"):
            pbt(max_bytes=bad)


def test_a_rate_that_nobody_has_limited_is_searched_around_that_of_the_optimizer():
    search = PopulationBasedTraining(population=3, interval=1)
    fit(search, max_steps=3)
    rates = [standing["hyperparameters"]["lr"] for standing in search.state_dict()["standings"]]
    assert all(0.001 <= rate <= 0.1 for rate in rates)


def test_a_loader_for_this_file_goes_on_where_it_was():
    loader = StatefulLoader(list(range(10)), batch_size=2)
    iterator = iter(loader)
    next(iterator), next(iterator)
    other = StatefulLoader(list(range(10)), batch_size=2)
    other.load_state_dict(loader.state_dict())
    assert [batch.tolist() for batch in other] == [[4, 5], [6, 7], [8, 9]]
