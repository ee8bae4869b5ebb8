# SPDX-License-Identifier: Apache-2.0
"""What every callback that changes training owes, asked of each one the room exports."""

import copy
import inspect
import pickle

import jsonargparse
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from pytorch_optimizer import ScheduleFreeAdamW
from torch.utils.data import DataLoader

import lightning_stable.callbacks as room
from lightning_stable.optim import SophiaG
from lightning_stable.transforms import AdaClip, SpikeClip, ZScoreClip

CALLBACKS = [
    member
    for _, member in inspect.getmembers(room, inspect.isclass)
    if issubclass(member, Callback) and not inspect.isabstract(member)
]
# Arguments with which a run of a few steps shows what a callback does; defaults are for real runs.
BUSY = {
    "AdaptiveBatchSize": {"every_n_steps": 2, "eta": 0.01, "max_accumulation": 2},  # within one epoch
    "MomentumReset": {"every_n_steps": 4, "warmup_steps": 3},
    "ResolutionSchedule": {"scales": [0.82, 1.0], "steps": [6]},  # round(1 / 0.82^2) is one batch a step
    "SequenceLengthWarmup": {"start": 1, "steps": 6, "multiple_of": 1},
    "DropoutSchedule": {"steps": 6},
    "PopulationBasedTraining": {
        "search": {"weight_decay": [1e-3, 1.0], "betas.0": [0.5, 0.95]},
        "population": 3,
        "interval": 1,
    },
    "GaussNewtonBartlett": {"every_n_steps": 3},
    "LRRangeTest": {"min_lr": 1e-3, "max_lr": 1e3, "steps": 12, "momentum": [0.5]},
    "GradientTransforms": {
        "transforms": [SpikeClip(threshold=2.0, start_after=3), AdaClip(theta=0.5), ZScoreClip(z=0.5, warmup_steps=2)]
    },
}
OPTIMIZERS = {"GaussNewtonBartlett": SophiaG, "ScheduleFree": ScheduleFreeAdamW}  # what serves one optimizer only
DATA = torch.randn(24, 4, generator=torch.Generator().manual_seed(0))
LAYERS = {"DropoutSchedule": lambda: torch.nn.Dropout(0.0)}  # it draws no random numbers: a run with others would
SHAPES = {"ResolutionSchedule": (1, 1, 4)}  # of a sample, where it matters


class Model(LightningModule):
    def __init__(self, callback=None):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 3)
        self.before = LAYERS.get(type(callback).__name__, torch.nn.Identity)()
        self.kind = OPTIMIZERS.get(type(callback).__name__, torch.optim.AdamW)

    def training_step(self, batch, batch_idx):
        batch = batch.flatten(1)
        batch = torch.nn.functional.pad(batch, (0, 4 - batch.shape[1]))  # a callback may have cut it
        return torch.nn.functional.cross_entropy(self.layer(self.before(batch)), batch[:, :3].argmax(1))

    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))

    def configure_optimizers(self):
        return self.kind(self.parameters(), lr=0.01)


@pytest.fixture(autouse=True)
def write_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.fixture(params=CALLBACKS, ids=lambda member: member.__name__)
def kind(request):
    return request.param


def busy(kind):
    return kind(**BUSY.get(kind.__name__, {}))


def trainer(callback, **settings):
    return Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[callback],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_steps": 12, **settings},
    )


def load(callback, data=DATA):
    return DataLoader(data.view(-1, *SHAPES.get(type(callback).__name__, (4,))))


def fit(callback, data=DATA, ckpt_path=None, model=None, **settings):
    model, run = model or Model(callback), trainer(callback, **settings)
    run.fit(model, load(callback, data), load(callback, DATA[:2]), ckpt_path=ckpt_path)
    return model, run


def same(a, b):
    """Whether two states hold the same numbers, bit for bit."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(same(a[key], b[key]) for key in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))
    return a == b


def test_it_constructs_with_defaults_pickles_and_comes_from_yaml(kind):
    kind()
    assert type(pickle.loads(pickle.dumps(kind()))) is kind
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--callback", type=Callback)
    config = parser.parse_args([f"--callback={kind.__module__}.{kind.__name__}"])
    instantiate = (
        getattr(parser, "instantiate", None) or parser.instantiate_classes
    )  # the latter until jsonargparse 4.48
    assert type(instantiate(config).callback) is kind


@pytest.mark.parametrize(
    "settings",
    [{}, {"precision": "bf16-mixed"}, {"accumulate_grad_batches": 2, "max_steps": 9}, {"gradient_clip_val": 0.5}],
    ids=str,
)
def test_it_trains(kind, settings):
    for callback in (kind(), busy(kind)):
        model, run = fit(callback, **settings)
        assert run.global_step == settings.get("max_steps", 12)
        assert all(parameter.isfinite().all() for parameter in model.parameters())
        pickle.dumps(callback)


@pytest.mark.parametrize("saved_at", [3, 5, 8])
def test_resume_equals_an_uninterrupted_run(kind, tmp_path, saved_at):
    straight, _ = fit(busy(kind))
    first = busy(kind)
    _, run = fit(first, max_steps=saved_at)
    run.save_checkpoint(tmp_path / "mid.ckpt")
    torch.load(tmp_path / "mid.ckpt", weights_only=True)
    used = run.fit_loop.epoch_loop.batch_progress.total.processed  # more than one batch a step, perhaps
    resumed, _ = fit(busy(kind), data=DATA.roll(-used, 0), ckpt_path=tmp_path / "mid.ckpt")
    assert torch.equal(straight.layer.weight, resumed.layer.weight)
    assert torch.equal(straight.layer.bias, resumed.layer.bias)


def test_its_state_round_trips_and_is_a_copy(kind, tmp_path):
    states = []

    class Save(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx in (5, 6):
                states.append((trainer.callbacks[0].state_dict(), copy.deepcopy(trainer.callbacks[0].state_dict())))

    callback = busy(kind)
    run = trainer(callback)
    run.callbacks.append(Save())
    run.fit(Model(callback), load(callback), load(callback, DATA[:2]))
    for state, frozen in states:
        assert same(state, frozen)
        torch.save(state, tmp_path / "state.pt")
        other = busy(kind)
        other.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
        assert same(other.state_dict(), frozen)


def test_it_leaves_the_global_random_numbers_alone(kind):
    def numbers(callback):
        fit(callback)
        return torch.rand(3)

    assert torch.equal(numbers(busy(kind)), numbers(Callback()))


def test_validation_alone_changes_nothing(kind):
    callback = busy(kind)
    model = Model(callback)
    weight, state = model.layer.weight.detach().clone(), callback.state_dict()
    trainer(callback).validate(model, load(callback), verbose=False)
    assert torch.equal(model.layer.weight, weight)
    assert same(callback.state_dict(), state)
    model, run = fit(callback)
    state = copy.deepcopy(callback.state_dict())
    run.validate(model, load(callback), verbose=False)
    assert same(callback.state_dict(), state)


def test_it_leaves_the_optimizer_as_it_was_found(kind):
    _, plain = fit(Callback(), model=Model(busy(kind)))
    _, run = fit(busy(kind))
    assert vars(run.optimizers[0]).keys() == vars(plain.optimizers[0]).keys()
    assert run.optimizers[0].param_groups[0]["lr"] == 0.01
