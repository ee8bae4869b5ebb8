# SPDX-License-Identifier: Apache-2.0
"""SAM under Lightning: automatic and manual optimization, schedules, clipping, resume, and what it refuses."""

import copy

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from torch import nn
from torch.utils.data import DataLoader

from lightning_stable.mixins import ScheduledOptimizerMixin
from lightning_stable.optim.sam import SAM
from tests.faulty_runs import assert_same

NAME = f"{SAM.__module__}.SAM"
DATA = torch.randn(40, 4, generator=torch.Generator().manual_seed(0))


class Model(ScheduledOptimizerMixin, LightningModule):
    def __init__(self, **kwargs):
        arguments = {"base_optimizer": "torch.optim.AdamW", "rho": 0.2, "base_args": {"betas": [0.9, 0.95]}}
        settings = {"optimizer": NAME, "lr": 0.02, "weight_decay": 0.1, "optimizer_args": arguments}
        super().__init__(**{**settings, **kwargs})
        self.save_hyperparameters()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Tanh(), nn.Linear(8, 1))
        self.logged = []

    def loss(self, batch):
        return (self.net(batch).squeeze(-1) - batch.prod(-1)).square().mean()

    def training_step(self, batch, batch_idx):
        loss = self.loss(batch)
        if self.trainer.optimizers[0].phase == "ascend":
            self.log("train_loss", loss, on_step=False, on_epoch=True)
            self.logged.append(loss.item())
        return loss


class Manual(Model):
    def __init__(self, by_closure=False, **kwargs):
        super().__init__(**kwargs)
        self.automatic_optimization = False
        self.by_closure = by_closure

    def training_step(self, batch, batch_idx):
        optimizer = self.optimizers()

        def closure():
            optimizer.zero_grad()
            self.manual_backward(self.loss(batch))

        if self.by_closure:
            optimizer.step(closure)
        else:
            closure()
            optimizer.ascend()
            closure()
            optimizer.step()
        self.lr_schedulers().step()


def fit(model, data=DATA, ckpt_path=None, **settings):
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"max_steps": 10, **settings},
    )
    trainer.fit(model, DataLoader(data, batch_size=4), ckpt_path=ckpt_path)
    return trainer


def outcome(trainer):
    return dict(trainer.lightning_module.state_dict()), trainer.optimizers[0].state_dict(), trainer.global_step


def by_a_loop(steps=10):
    """The same run without Lightning."""
    model = Model()
    groups = [
        {
            "params": [parameter for parameter in model.parameters() if (parameter.ndim >= 2) is decayed],
            "weight_decay": w,
        }
        for decayed, w in ((True, 0.1), (False, 0.0))
    ]
    optimizer = SAM(groups, "torch.optim.AdamW", rho=0.2, lr=0.02, base_args={"betas": [0.9, 0.95]})
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=10)
    for batch in DATA.split(4)[:steps]:

        def closure(batch=batch):
            optimizer.zero_grad()
            loss = model.loss(batch)
            loss.backward()
            return loss

        optimizer.step(closure)
        schedule.step()
    return dict(model.state_dict()), optimizer.state_dict(), steps


COSINE = {"schedule": "torch.optim.lr_scheduler.CosineAnnealingLR", "schedule_args": {"T_max": 10}}


@pytest.mark.parametrize("kind", [Model, Manual, lambda **kw: Manual(by_closure=True, **kw)],
                         ids=["automatic", "manual", "manual with a closure"])  # fmt: skip
def test_a_fit_equals_a_loop_batch_statistics_and_schedule_included(kind):
    model = kind(**COSINE)
    trainer = fit(model)
    assert_same(outcome(trainer), by_a_loop())
    assert model.net[1].num_batches_tracked.item() == 10
    assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("momentum", [0.1, None])
def test_batch_statistics_move_once_a_step_by_the_pass_at_w(momentum):
    class Twinned(Model):
        def on_train_batch_start(self, batch, batch_idx):
            twin = copy.deepcopy(self.net)
            twin(batch)
            self.expected = dict(twin.named_buffers())

        def on_train_batch_end(self, outputs, batch, batch_idx):
            assert_same(dict(self.net.named_buffers()), self.expected)

    model = Twinned(**COSINE)
    model.net[1].momentum = momentum
    fit(model)
    assert model.net[1].num_batches_tracked.item() == 10


def test_what_is_logged_while_ascending_is_the_loss_at_w_once_a_step():
    model = Model(**COSINE)
    trainer = fit(model)
    assert len(model.logged) == 10
    assert trainer.callback_metrics["train_loss"].item() == pytest.approx(sum(model.logged) / 10)
    second = Model(**COSINE)
    assert model.logged[0] == second.loss(DATA[:4]).item()


class Watch(Callback):
    def __init__(self):
        self.phases, self.uphill = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.phases.append(trainer.optimizers[0].phase)
        if self.phases[-1] == "descend":
            self.uphill.append(torch.cat([parameter.detach().flatten() for parameter in pl_module.parameters()]))


def test_a_callback_can_tell_the_two_passes_apart_and_clipping_by_norm_leaves_the_perturbation_alone():
    clipped, free = Watch(), Watch()
    fit(Model(**COSINE), callbacks=[clipped], gradient_clip_val=0.01)
    assert_same(outcome(fit(Model(**COSINE), callbacks=[free])), by_a_loop())
    assert clipped.phases == free.phases == ["ascend", "descend"] * 10
    torch.testing.assert_close(clipped.uphill[0], free.uphill[0], rtol=0, atol=1e-5)


@pytest.mark.parametrize("saved_at", [1, 6])
def test_resume_from_a_checkpoint_equals_an_uninterrupted_run(tmp_path, saved_at):
    first = fit(Model(**COSINE), max_steps=saved_at)
    first.save_checkpoint(tmp_path / "mid.ckpt")
    torch.load(tmp_path / "mid.ckpt", weights_only=True)
    resumed = fit(Model(**COSINE), data=DATA.roll(-4 * saved_at, 0), ckpt_path=tmp_path / "mid.ckpt")
    assert_same(outcome(resumed), by_a_loop())


@pytest.mark.parametrize("settings", [{"precision": "bf16-mixed"}, {"precision": "64-true"}], ids=str)
def test_other_precisions_will_do(settings):
    model = Model(**COSINE)
    fit(model, data=DATA.double() if settings["precision"] == "64-true" else DATA, **settings)
    assert model.net[1].num_batches_tracked.item() == 10
    assert all(parameter.isfinite().all() for parameter in model.parameters())


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")  # once in a process
def test_a_step_without_a_loss_moves_nothing():
    class Skips(Model):
        def training_step(self, batch, batch_idx):
            return None

    model, before = Skips(**COSINE), Skips(**COSINE)
    fit(model, max_steps=2)
    assert_same(dict(model.state_dict()), dict(before.state_dict()))


# What it refuses


def test_a_gradient_scaler_is_refused():
    """Lightning makes one for "16-mixed" on CUDA alone, so this is its plugin with the scaler that CPUs have."""
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0)
    plugin = MixedPrecision("16-mixed", device="cpu", scaler=scaler)
    message = r'`SAM\.step\(closure=\.\.\.\)` must be .* got None.* set `Trainer\(precision="bf16-mixed"\)`'
    with pytest.raises(RuntimeError, match=message):
        fit(Model(**COSINE), plugins=[plugin])


def test_accumulation_is_refused_in_the_first_step():
    model, before = Model(**COSINE), Model(**COSINE)
    message = r"`SAM\.step\(closure=\.\.\.\)` must start from no gradients.*`Trainer\(accumulate_grad_batches=1\)`"
    with pytest.raises(RuntimeError, match=message):
        fit(model, accumulate_grad_batches=2)
    assert_same([*model.parameters()], [*before.parameters()])


def test_a_manual_step_without_ascending_is_refused():
    class Forgets(Manual):
        def training_step(self, batch, batch_idx):
            self.optimizers().zero_grad()
            self.manual_backward(self.loss(batch))
            self.optimizers().step()

    with pytest.raises(RuntimeError, match=r"in manual optimization call `ascend\(\)` after the first backward"):
        fit(Forgets(**COSINE))


def test_a_step_without_a_closure_is_refused_where_there_is_a_gradient():
    w = nn.Parameter(torch.ones(2))
    optimizer = SAM([w], lr=0.1)
    for value in (1.0, float("nan")):
        w.grad = torch.full((2,), value)
        with pytest.raises(RuntimeError, match=r"`SAM\.step\(closure=\.\.\.\)` must be a function"):
            optimizer.step()
    w.grad = torch.zeros(2)  # so torch's distributed checkpoints make an optimizer prepare its state
    optimizer.step()
    assert torch.equal(w, torch.ones(2))
    w.grad, optimizer.param_groups[0]["rho"] = torch.ones(2), 0.0
    optimizer.step()
    assert w[0].item() == pytest.approx(0.9)
