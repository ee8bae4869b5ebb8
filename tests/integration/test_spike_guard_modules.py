# SPDX-License-Identifier: Apache-2.0
"""The guard over modules that are compiled, recompute their forward pass, are half precise, or step by hand."""

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_stable.guard import Rollback, SkipStep
from tests.faulty_runs import ManualNet, Net, assert_same, make_batches, run
from tests.guard.test_spike_guard import guard, scaler_plugin, without

COUNT = 12
RESPONSES = {"skip": lambda: SkipStep(times=99), "replay": lambda: Rollback(mode="replay", times=99)}


@pytest.fixture(params=RESPONSES)
def response(request):
    return RESPONSES[request.param]()


class CompiledByTheTrainer(Net):
    """The whole module, as `torch.compile(module)` makes it; its step is compiled."""

    def __init__(self):
        super().__init__()
        self.layers.compile(backend="eager")


class Recomputes(Net):
    """Dropout draws the same numbers once more in backward."""

    def forward(self, x):
        return self.layers[4](checkpoint(self.layers[:4], x, use_reentrant=False))


class AccumulatesByHand(ManualNet):
    """Two batches to a step."""

    def training_step(self, batch, batch_idx):
        optimizer, schedule = self.optimizers(), self.lr_schedulers()
        loss = Net.training_step(self, batch, batch_idx) / 2
        self.manual_backward(loss)
        if batch_idx % 2 == 1:
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


class Adversaries(Net):
    """A generator and a discriminator that step in turn, each with its own gradients only."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.discriminator = nn.Sequential(
            nn.Linear(1, 8), nn.BatchNorm1d(8), nn.ReLU(), nn.Dropout(0.2), nn.Linear(8, 1)
        )

    def configure_optimizers(self):
        return (
            torch.optim.Adam(self.layers.parameters(), lr=1e-2, betas=(0.5, 0.9)),
            torch.optim.Adam(self.discriminator.parameters(), lr=1e-2, betas=(0.5, 0.9)),
        )

    def training_step(self, batch, batch_idx):
        self.seen += 1
        generator, discriminator = self.optimizers()
        entropy = nn.functional.binary_cross_entropy_with_logits
        self.toggle_optimizer(discriminator)
        real, fake = self.discriminator(batch["y"]), self.discriminator(self(batch["x"]).detach())
        loss = entropy(real, torch.ones_like(real)) + entropy(fake, torch.zeros_like(fake))
        discriminator.zero_grad()
        self.manual_backward(loss)
        discriminator.step()
        self.untoggle_optimizer(discriminator)
        self.toggle_optimizer(generator)
        verdict = self.discriminator(self(batch["x"]))
        loss = entropy(verdict, torch.ones_like(verdict))
        generator.zero_grad()
        self.manual_backward(loss)
        generator.step()
        self.untoggle_optimizer(generator)
        self.log("train_loss", loss, on_step=True, on_epoch=True)


SETTINGS = {
    "compiled": {"model": CompiledByTheTrainer},
    "recomputed": {"model": Recomputes},
    "recomputed, bf16-mixed": {"model": Recomputes, "precision": "bf16-mixed"},
    "bf16-true": {"precision": "bf16-true"},
    "adversaries": {"model": Adversaries},
}
WINDOWED = {
    "16-mixed": {"plugins": scaler_plugin, "accumulate_grad_batches": 2},
    "bf16-true": {"precision": "bf16-true", "accumulate_grad_batches": 2},
    "by hand": {"model": AccumulatesByHand},
    "by hand, 16-mixed": {"model": AccumulatesByHand, "plugins": scaler_plugin},
}


def fresh(setting):
    return {key: [value()] if key == "plugins" else value for key, value in setting.items()}


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of the compiler itself
@pytest.mark.parametrize("bad", [{0}, {5}, {4, 6}, {COUNT - 1}], ids=str)
@pytest.mark.parametrize("setting", SETTINGS)
def test_an_undone_step_never_happened(setting, response, bad):
    guarded = guard(response, snapshot_every=4)
    actual = run(make_batches(COUNT, bad), [guarded], **SETTINGS[setting])
    assert_same(actual, run(without(make_batches(COUNT), bad), **SETTINGS[setting]))
    assert len(guarded.incidents) == 2 * len(bad)


@pytest.mark.parametrize("bad", [{0}, {5}, {4, 9}, {COUNT - 1}], ids=str)
@pytest.mark.parametrize("setting", WINDOWED)
def test_an_undone_window_never_happened(setting, response, bad):
    guarded = guard(response, snapshot_every=2)
    actual = run(make_batches(COUNT, bad), [guarded], **fresh(WINDOWED[setting]))
    window = {index // 2 * 2 + one for index in bad for one in (0, 1)}
    assert_same(actual, run(without(make_batches(COUNT), window), **fresh(WINDOWED[setting])))
    assert len(guarded.incidents) == 2 * len(bad)


class Sparse(Net):
    """An embedding whose gradients are sparse, on the signs of the data."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.table = nn.Embedding(2, 1, sparse=True)

    def training_step(self, batch, batch_idx):
        dense, sparse = self.optimizers()
        x = batch["x"]
        loss = nn.functional.mse_loss(self(x) + self.table((x > 0).long()).mean(1) * x.mean(), batch["y"])
        for optimizer in (dense, sparse):
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in (dense, sparse):
            optimizer.step()

    def configure_optimizers(self):
        dense = torch.optim.AdamW(self.layers.parameters(), lr=1e-2)
        return dense, torch.optim.SparseAdam(list(self.table.parameters()), lr=1e-2)


@pytest.mark.parametrize("bad", [{0}, {5, 6}])
def test_sparse_gradients_are_read_and_undone(response, bad):
    guarded = guard(response, snapshot_every=4)
    actual = run(make_batches(COUNT, bad), [guarded], model=Sparse)
    assert_same(actual, run(without(make_batches(COUNT), bad), model=Sparse))
    assert len(guarded.incidents) == 2 * len(bad)
