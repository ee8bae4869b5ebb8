# SPDX-License-Identifier: Apache-2.0
"""After a range test the run is what it would have been, to the bit: with every kind of data, optimizer and setting."""

import random

import numpy as np
import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import EMAWeightAveraging
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from pytorch_optimizer import ScheduleFreeAdamW
from torch.utils.data import DataLoader, Dataset, IterableDataset, TensorDataset
from torchmetrics import MeanMetric

from lightning_stable.callbacks import LRRangeTest, MomentumReset, ScheduleFree
from lightning_stable.guard import SpikeGuard
from lightning_stable.optim import SAM, StableSPAM
from tests.faulty_runs import assert_same

X = torch.randn(24, 4, generator=torch.Generator().manual_seed(3))
TEST = {"min_lr": 1e-3, "max_lr": 1e3, "steps": 8}
pytestmark = pytest.mark.filterwarnings("ignore:Trying to infer the `batch_size`")


class Net(LightningModule):
    """As many things that a step changes as there are."""

    def __init__(self, configure=None):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(
            torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, 1)
        )
        self.register_buffer("seen", torch.zeros(()), persistent=False)
        self.metric = MeanMetric()
        self.count, self.losses = 0, []
        self.generator = torch.Generator().manual_seed(1)
        self.configure = configure

    def training_step(self, batch, batch_idx):
        noise = random.random() + np.random.rand() + torch.rand(1, generator=self.generator).item()
        loss = self.net(batch + noise / 10).square().mean()
        self.seen += 1
        self.count += 1
        self.losses.append(loss.item())
        self.metric.update(loss)
        self.log("loss", loss, on_step=True, on_epoch=True)
        self.log("metric", self.metric, on_step=False, on_epoch=True)
        return loss

    def configure_optimizers(self):
        if self.configure is not None:
            return self.configure(self.parameters())
        return adamw_on_a_schedule(self.parameters())


def adamw_on_a_schedule(parameters):
    optimizer = torch.optim.AdamW(parameters, lr=0.01)
    scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


def sgd_on_a_plateau(parameters):
    optimizer = torch.optim.SGD(parameters, lr=0.01, momentum=0.9)
    scheduler = torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer, patience=1)
    return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step", "monitor": "loss"}}


class Record(Callback):
    """Every batch and the state around it."""

    def __init__(self):
        self.steps = []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        randoms = torch.get_rng_state(), np.random.get_state()[1].tolist(), random.getstate()[1]
        lr = [group["lr"] for group in trainer.optimizers[0].param_groups]
        self.steps.append([batch, outputs["loss"], randoms, lr, trainer.global_step, batch_idx])


def outcome(callbacks, make_data, model=None, logger=False, before=(), **settings):
    random.seed(1)
    np.random.seed(1)
    model = model or Net()
    record = Record()
    torch.manual_seed(1)
    trainer = Trainer(
        **{"max_epochs": 2, "accelerator": "cpu", "devices": 1, "log_every_n_steps": 1, **settings},
        callbacks=[*before, *callbacks, record],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, make_data())
    (optimizer,) = trainer.optimizers
    return {
        "steps": record.steps,
        "model": model.state_dict(),
        "buffer": model.seen,
        "attributes": [model.count, model.losses, model.generator.get_state()],
        "optimizer": optimizer.state_dict(),
        "schedules": [
            {name: value for name, value in config.scheduler.state_dict().items() if not callable(value)}
            for config in trainer.lr_scheduler_configs
        ],
        "scaler": trainer.precision_plugin.state_dict(),
        "logged": {name: value.clone() for name, value in trainer.callback_metrics.items()},
        "progress": str(trainer.fit_loop.state_dict()),
        "next": [torch.rand(3), np.random.rand(), random.random()],
    }


def assert_no_trace(make_data, make_model=Net, make_before=list, make_settings=dict):
    test = LRRangeTest(**TEST)
    plain = outcome([], make_data, make_model(), before=make_before(), **make_settings())
    tested = outcome([test], make_data, make_model(), before=make_before(), **make_settings())
    assert test.result.steps > 20
    assert len(plain["steps"]) >= 4
    assert_same(tested, plain)


def plain_data():
    return DataLoader(X, batch_size=8)


# Data


class Counts(IterableDataset):
    """Keeps its own position, and a generator of its own."""

    def __init__(self):
        self.position, self.generator = 0, np.random.default_rng(0)

    def __iter__(self):
        for _ in range(24):
            self.position += 1
            yield torch.full((4,), self.position / 10) + float(self.generator.random())


class Augments(Dataset):
    """Draws from the global numbers, and from its own."""

    def __init__(self):
        self.own, self.used = random.Random(3), []

    def __len__(self):
        return 24

    def __getitem__(self, index):
        self.used.append(index)
        return X[index] * (random.random() + np.random.rand() + torch.rand(1) + self.own.random())


class Stateful:
    """A loader with a state, that goes on where it was."""

    def __init__(self):
        self.position = 0

    def __iter__(self):
        self.position %= 24
        while self.position < 24:
            self.position += 8
            yield X[self.position - 8 : self.position]

    def __len__(self):
        return 3

    def state_dict(self):
        return {"position": self.position}

    def load_state_dict(self, state):
        self.position = state["position"]


class Batches:
    """All that Lightning asks of a loader."""

    def __iter__(self):
        return iter(X.split(8))


class Collates:
    """Owns the loader's function and a trainer, as a data module does."""

    def loader(self):
        return DataLoader(X, batch_size=8, collate_fn=self.collate)

    def collate(self, rows):
        return torch.stack(rows) * (1 + torch.rand(1))


def own_generator(**settings):
    return DataLoader(X, batch_size=8, shuffle=True, generator=torch.Generator().manual_seed(5), **settings)


DATA = {
    "in order": plain_data,
    "shuffled": lambda: DataLoader(X, batch_size=8, shuffle=True),
    "with a generator of its own": own_generator,
    "a worker": lambda: own_generator(num_workers=1),
    "persistent workers": lambda: DataLoader(
        Augments(), batch_size=8, shuffle=True, num_workers=1, persistent_workers=True
    ),
    "augmented": lambda: DataLoader(Augments(), batch_size=8, shuffle=True),
    "counts": lambda: DataLoader(Counts(), batch_size=8),
    "counts, in workers": lambda: DataLoader(Counts(), batch_size=8, num_workers=1),
    "stateful": Stateful,
    "no DataLoader": Batches,
    "collated": lambda: Collates().loader(),
}


@pytest.mark.parametrize("name", DATA)
def test_no_trace_is_left_with_any_kind_of_data(name):
    assert_no_trace(DATA[name])


def test_no_trace_is_left_with_several_loaders():
    class Both(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(torch.cat([batch["a"], batch["b"]]), batch_idx)

    assert_no_trace(lambda: {"a": own_generator(), "b": DataLoader(Counts(), batch_size=4)}, Both)


# Optimizers


OPTIMIZERS = {
    "SGD, on a plateau": sgd_on_a_plateau,
    "fused Adam": lambda p: torch.optim.Adam(p, lr=0.01, fused=True),
    "capturable rate": lambda p: torch.optim.Adam(p, lr=torch.tensor(0.01), foreach=False),
    "RMSprop": lambda p: torch.optim.RMSprop(p, lr=0.01, momentum=0.5),
    "LBFGS": lambda p: torch.optim.LBFGS(p, lr=0.01, max_iter=2),
    "SAM": lambda p: SAM(p, lr=0.01),
    "StableSPAM": lambda p: StableSPAM(p, lr=0.01),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_no_trace_is_left_with_any_optimizer(name):
    assert_no_trace(plain_data, lambda: Net(OPTIMIZERS[name]))


def test_no_trace_is_left_of_values_of_momentum_and_weight_decay(monkeypatch):
    monkeypatch.setitem(TEST, "momentum", [0.5, 0.8])
    monkeypatch.setitem(TEST, "weight_decay", [0.1, 1.0])
    assert_no_trace(plain_data)


def test_no_trace_is_left_of_a_schedule_free_optimizer():
    assert_no_trace(plain_data, lambda: Net(lambda p: ScheduleFreeAdamW(p, lr=0.01)), lambda: [ScheduleFree()])


# Trainers and callbacks


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16-mixed"},
        {"precision": "64-true"},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 0.1},
        {"overfit_batches": 3},
        {"reload_dataloaders_every_n_epochs": 1},
    ],
    ids=str,
)
def test_no_trace_is_left_with_any_setting(settings):
    class Doubles(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch.to(self.dtype), batch_idx)

    assert_no_trace(plain_data, Doubles, make_settings=lambda: settings)


@pytest.mark.filterwarnings("ignore:Detected call of `lr_scheduler.step")  # the first steps of the run overflow
def test_the_scaler_finds_its_scale_as_if_nothing_had_been():
    def settings():
        return {"plugins": [MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu", init_scale=2.0**30))]}

    assert_no_trace(plain_data, make_settings=settings)


@pytest.mark.parametrize(
    "make_before",
    [
        lambda: [MomentumReset(every_n_steps=2, warmup_steps=1)],
        lambda: [SpikeGuard()],
        lambda: [EMAWeightAveraging(decay=0.5)],
    ],
    ids=["MomentumReset", "SpikeGuard", "EMAWeightAveraging"],
)
def test_callbacks_that_came_before_notice_nothing(make_before):
    assert_no_trace(plain_data, make_before=make_before)


def test_what_is_logged_is_the_same(tmp_path):
    texts = []
    for name, callbacks in (("plain", []), ("tested", [LRRangeTest(**TEST)])):
        outcome(callbacks, plain_data, logger=CSVLogger(tmp_path, name=name))
        texts.append((tmp_path / name / "version_0" / "metrics.csv").read_text())
    assert texts[0] == texts[1]


# Errors in the middle


@pytest.mark.parametrize("error", [KeyboardInterrupt, ZeroDivisionError])
@pytest.mark.parametrize("at", [1, 6, 20])
def test_an_error_in_mid_test_leaves_everything_as_it_was(error, at):
    calls = []

    class Fails(Net):
        def training_step(self, batch, batch_idx):
            calls.append(batch_idx)
            loss = super().training_step(batch, batch_idx)
            if len(calls) == at:
                raise error
            return loss

    model, found = Fails(), {}

    class Look(Callback):
        """Sees the run just before the test, and when it has failed."""

        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            found["before"] = self.state(trainer, pl_module)

        def on_exception(self, trainer, pl_module, exception):
            found["after"] = self.state(trainer, pl_module)

        def state(self, trainer, module):
            return {
                "model": {name: value.clone() for name, value in module.state_dict().items()},
                "attributes": [module.count, list(module.losses), module.seen.clone(), module.generator.get_state()],
                "gradients": [parameter.grad for parameter in module.parameters()] == [None] * 6,
                "optimizer": str(trainer.optimizers[0].state_dict()),
                "random": [torch.get_rng_state(), random.getstate()[1], np.random.get_state()[1].tolist()],
                "progress": str(trainer.fit_loop.state_dict()),
            }

    with pytest.raises((error, SystemExit)):
        outcome([Look(), LRRangeTest(**TEST)], plain_data, model)
    assert len(calls) == at
    assert found["before"]["gradients"]
    assert_same(found["after"], found["before"])


# What cannot be put back


class Streams(IterableDataset):
    def __init__(self):
        self.stream = (row for row in X)

    def __iter__(self):
        return self.stream


@pytest.mark.parametrize("workers", [0, 1])
def test_a_stream_that_cannot_be_copied_is_refused(workers):
    with pytest.raises(
        ValueError, match=r"a `Streams` cannot be copied \(TypeError: cannot pickle 'generator' object\)"
    ):
        outcome([LRRangeTest(**TEST)], lambda: DataLoader(Streams(), num_workers=workers))


def test_a_data_set_of_samples_that_cannot_be_copied_is_read_with_a_warning():
    class Open(TensorDataset):
        def __init__(self):
            super().__init__(X)
            self.handle = (row for row in X)  # as an open file would be

        def __getitem__(self, index):
            return super().__getitem__(index)[0]

    with pytest.warns(UserWarning, match="`LRRangeTest` cannot copy the `Open`"):
        outcome([test := LRRangeTest(**TEST)], lambda: DataLoader(Open(), batch_size=8))
    assert test.result is not None
