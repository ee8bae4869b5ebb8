# SPDX-License-Identifier: Apache-2.0
"""A resume whose optimizer has forgotten, or remembers wrongly, is found out and mended; a healthy one is let be."""

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import nn
from torch.utils.data import DataLoader

from lightning_stable.detectors import MedianDeviation
from lightning_stable.guard import Halt, Rollback, SkipStep, SpikeGuard
from lightning_stable.optim import reset_moments
from lightning_stable.testing import InjectFault
from tests.faulty_runs import assert_same

# a checkpoint that knows of a `ModelCheckpoint` may be resumed without one
pytestmark = pytest.mark.filterwarnings("ignore:.*callbacks used to create the checkpoint need to be provided.*")

STEPS, SAVED, LR = 240, 160, 3e-3


class Teacher(LightningModule):
    """A network that learns another one, with noise, by Adam; its loss settles."""

    def __init__(self, optimizer=torch.optim.AdamW, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.net = nn.Sequential(nn.Linear(8, 32), nn.Tanh(), nn.Linear(32, 1))
        self.optimizer, self.settings = optimizer, settings
        self.losses = []

    def training_step(self, batch, batch_idx):
        x, y = batch
        loss = nn.functional.mse_loss(self.net(x), y)
        self.losses.append(loss.detach())
        return loss

    def configure_optimizers(self):
        return self.optimizer(self.parameters(), lr=LR, **self.settings)


def data():
    generator = torch.Generator().manual_seed(5)
    x = torch.randn(STEPS, 16, 8, generator=generator)
    y = x.sum(-1, keepdim=True).sin() + 0.3 * torch.randn(STEPS, 16, 1, generator=generator)
    return list(zip(x, y, strict=True))


def guarded(*ladder, **arguments):
    watch = {"loss": MedianDeviation(min_rise=0.5), "grad_norm": MedianDeviation(min_ratio=10.0)}
    return SpikeGuard(
        watch=watch, ladder=[*(ladder or (SkipStep(), Rollback())), Halt()], snapshot_every=10, **arguments
    )


def train(folder, guard, *callbacks, ckpt_path=None, model=Teacher, **settings):
    module = model()
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[guard, *callbacks],
        default_root_dir=folder,
        **{"enable_checkpointing": False, **settings},
    )
    trainer.fit(module, DataLoader(data(), batch_size=None), ckpt_path=ckpt_path)
    return module, trainer


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return tmp_path_factory.mktemp("resume")


@pytest.fixture(scope="module")
def path(folder):
    save = ModelCheckpoint(dirpath=folder, filename="{step}", every_n_train_steps=SAVED, save_top_k=-1)
    train(folder, guarded(), save, enable_checkpointing=True, max_steps=SAVED)
    return folder / f"step={SAVED}.ckpt"


@pytest.fixture(scope="module")
def healthy(folder):
    return train(folder, guarded())


class Steps(Callback):
    """The rms of what each step has moved the weights by."""

    def __init__(self):
        self.moved = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = torch.cat([p.detach().flatten().clone() for p in pl_module.parameters()])

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = torch.cat([p.detach().flatten() for p in pl_module.parameters()])
        self.moved.append((now - self.before).square().mean().sqrt().item())


class WipeWithin(Callback):
    """Second moments become zero within the `after`-th batch after a resume, when they have been looked at."""

    def __init__(self, after):
        self.after, self.batches = after, 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches += 1
        if self.batches == self.after:
            for state in trainer.optimizers[0].state.values():
                state["exp_avg_sq"].zero_()


def late_loss(module, last=40):
    return torch.stack(module.losses)[-last:].mean()


def test_a_healthy_resume_is_left_alone(folder, path, healthy):
    guard = guarded()
    module, trainer = train(folder, guard, ckpt_path=path)
    assert guard.incidents == []
    assert_same(module.state_dict(), healthy[0].state_dict())
    assert trainer.global_step == STEPS


WIPED = [("empty", None), ("zero_second", None), ("scale", 1e3), ("scale", 1e-3)]


@pytest.mark.parametrize(("how", "factor"), WIPED)
def test_an_optimizer_that_was_wiped_or_scaled_is_restarted_before_it_does_harm(folder, path, healthy, how, factor):
    guard, found = guarded(), Steps()
    fault = InjectFault("wiped_optimizer", step=SAVED, how=how, factor=factor)
    module, trainer = train(folder, guard, fault, found, ckpt_path=path)
    (incident,) = guard.incidents
    assert incident.response == "RestartOptimizer"
    assert incident.signal.startswith("norm of AdamW.exp_avg")
    assert (incident.step, incident.steps_skipped, incident.batches) == (SAVED, 0, [])
    assert incident.restored[-1] == "learning rate x 0.1"
    assert max(found.moved[:20]) < 0.2 * LR
    assert max(found.moved) < 1.5 * LR
    assert trainer.global_step == STEPS
    assert late_loss(module) < 1.15 * late_loss(healthy[0])


@pytest.mark.parametrize("after", [1, 3, 30])
@pytest.mark.parametrize("replays", [False, True])
def test_steps_that_go_too_far_are_taken_back_and_made_again_more_gently(folder, path, healthy, after, replays):
    ladder = [SkipStep(), Rollback("replay" if replays else "skip")]
    guard, found = guarded(*ladder), Steps()
    module, trainer = train(folder, guard, WipeWithin(after), found, ckpt_path=path)
    first = guard.incidents[0]
    assert [incident.response for incident in guard.incidents] == ["ReturnToLoaded"]
    assert first.signal == "update_rms"
    assert first.value > first.threshold
    assert after <= first.steps_rolled_back <= after + 5
    assert (first.step, first.steps_skipped) == (SAVED + first.steps_rolled_back - 1, 0)
    assert "weights" in first.restored
    assert "all moments zeroed" in first.restored
    assert trainer.global_step == (STEPS if replays else STEPS - first.steps_rolled_back)
    assert max(found.moved[first.steps_rolled_back :]) < 1.5 * LR
    assert late_loss(module) < 1.15 * late_loss(healthy[0])


def test_after_going_back_it_is_the_run_that_began_there_with_fresh_moments(folder, path):
    """Bit for bit, replayed steps included."""

    class Restart(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if trainer.global_step == SAVED:
                optimizer = trainer.optimizers[0]
                reset_moments(optimizer, "all")

    actual, _ = train(folder, guarded(Rollback("replay"), resume_ramp=0), WipeWithin(1), ckpt_path=path)
    expected, _ = train(folder, guarded(resume_steps=0), Restart(), ckpt_path=path)
    assert_same(actual.state_dict(), expected.state_dict())


def test_a_ladder_that_never_goes_back_keeps_the_loaded_state_for_the_first_steps_only(folder, path):
    guard = guarded(SkipStep())
    rings = []

    class Look(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rings.append(guard._recovery.ring is not None)

    train(folder, guard, Look(), ckpt_path=path)
    assert rings == [True] * 49 + [False] * 31
    guard = guarded(SkipStep())
    train(folder, guard, WipeWithin(2), ckpt_path=path)
    assert [incident.response for incident in guard.incidents] == ["ReturnToLoaded"]


def test_nothing_is_checked_if_no_steps_are_wanted(folder, path):
    guard = guarded(resume_steps=0)
    train(folder, guard, InjectFault("wiped_optimizer", step=SAVED, how="empty"), ckpt_path=path)
    assert guard.incidents == []


@pytest.mark.parametrize("shift", [1.2, 9.0])  # trained on, and left out as spikes
def test_other_data_or_weights_show_in_the_loss(folder, path, shift):
    class Other(Teacher):
        def training_step(self, batch, batch_idx):
            return super().training_step((batch[0], batch[1] + shift), batch_idx)

    with pytest.warns(UserWarning, match=r"The loss does not go on where the checkpoint was written: \d+\.\d+ in"):
        train(folder, guarded(SkipStep(times=99)), ckpt_path=path, model=Other)


def test_an_optimizer_without_moments_resumes_in_peace(tmp_path):
    def plain():
        return Teacher(torch.optim.SGD)

    save = ModelCheckpoint(dirpath=tmp_path, filename="{step}", every_n_train_steps=SAVED, save_top_k=-1)
    train(tmp_path, guarded(), save, enable_checkpointing=True, max_steps=SAVED, model=plain)
    guard = guarded()
    train(tmp_path, guard, ckpt_path=tmp_path / f"step={SAVED}.ckpt", model=plain)
    assert guard.incidents == []


@pytest.mark.parametrize("name", ["resume_steps", "resume_ramp"])
def test_bad_arguments_are_named(name):
    with pytest.raises(ValueError, match=rf"`SpikeGuard\({name}=...\)` must be at least 0, got -1."):
        SpikeGuard(**{name: -1})
