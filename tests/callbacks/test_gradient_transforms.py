# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins import MixedPrecision
from torch.utils.data import DataLoader

from lightning_stable.callbacks import GradientTransforms, MomentumReset
from lightning_stable.guard import SpikeGuard
from lightning_stable.optim import SPAM
from lightning_stable.transforms import AdaClip, AdaptiveGradientClip, GlobalNormClip, SpikeClip, ZScoreClip

DATA = torch.randn(60, 4, dtype=torch.float64, generator=torch.Generator().manual_seed(0))


class Model(LightningModule):
    def __init__(self, kind=torch.optim.AdamW, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.body, self.head = torch.nn.Linear(4, 3).double(), torch.nn.Linear(3, 1).double()
        self.kind, self.settings = kind, settings

    def training_step(self, batch, batch_idx):
        return self.head(torch.tanh(self.body(batch))).square().mean()

    def configure_optimizers(self):
        return self.kind(self.parameters(), **{"lr": 0.01, **self.settings})


class Gradients(Callback):
    """Notes the gradients as they are when its turn comes."""

    def __init__(self):
        self.seen = []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.seen.append([parameter.grad.clone() for parameter in pl_module.parameters()])


def fit(model, callbacks, data=DATA, max_steps=60, ckpt_path=None, **settings):
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=max_steps,
        callbacks=callbacks,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **{"logger": False, **settings},
    )
    trainer.fit(model, DataLoader(data), ckpt_path=ckpt_path)
    return trainer


def spiky(data=DATA):
    data = data.clone()
    data[[12, 20, 33, 51]] *= 50
    return data


def norm(gradients):
    return math.sqrt(sum(float(gradient.square().sum()) for gradient in gradients))


def test_the_chain_sees_raw_gradients_and_clipping_what_it_leaves():
    before, after = Gradients(), Gradients()
    fit(Model(), [before, GradientTransforms(GlobalNormClip(0.1)), after], max_steps=5, gradient_clip_val=0.01)
    assert [norm(gradients) for gradients in after.seen] == pytest.approx([0.1] * 5)
    assert all(norm(gradients) > 0.1 for gradients in before.seen)


def test_adamw_with_spike_clip_and_momentum_reset_is_spam():
    settings = {"eps": 1e-30, "betas": (0.9, 0.99), "weight_decay": 0.0}
    composed, fused = (
        Model(**settings),
        Model(SPAM, **settings, spike_threshold=9.0, clip_after=4, reset_interval=15, reset_warmup=6),
    )
    chain = GradientTransforms(SpikeClip(threshold=9.0, start_after=4, reset_interval=15))
    fit(composed, [chain, MomentumReset(every_n_steps=15, moments="all", warmup_steps=6)], data=spiky())
    fit(fused, [], data=spiky())
    without = Model(SPAM, **settings, spike_threshold=0, reset_interval=15, reset_warmup=6)
    fit(without, [], data=spiky())
    for ours, theirs, other in zip(composed.parameters(), fused.parameters(), without.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)
        assert (ours - other).abs().max() > 1e-3  # there was something to clip


def test_every_optimizer_has_a_memory_of_its_own():
    class Manual(Model):
        def __init__(self):
            super().__init__()
            self.automatic_optimization = False

        def training_step(self, batch, batch_idx):
            for number, optimizer in enumerate(self.optimizers()):
                loss = super().training_step(batch, batch_idx) * 10**number
                self.manual_backward(loss)
                optimizer.step()
                optimizer.zero_grad()

        def configure_optimizers(self):
            return [torch.optim.SGD(self.body.parameters(), lr=0.1), torch.optim.SGD(self.head.parameters(), lr=0.1)]

    callback = GradientTransforms(AdaClip())
    trainer = fit(Manual(), [callback], max_steps=-1, max_epochs=1, log_every_n_steps=1)
    chains = callback.state_dict()["chains"]
    assert [chain[0]["step"].tolist() for chain in chains] == [[60.0, 60.0], [60.0, 60.0]]
    assert not torch.equal(chains[0][0]["mean"], chains[1][0]["mean"])
    assert "stability/transforms/clip_rate/AdaClip/1" in trainer.callback_metrics
    assert not callback.transforms[0].state_dict()["step"].numel()  # what the user made is a pattern, and stays one


def test_the_head_is_excluded_by_its_role():
    before, after = Gradients(), Gradients()
    fit(Model(), [before, GradientTransforms(AdaptiveGradientClip(clipping=1e-6)), after], max_steps=3)
    for (raw_body, _, raw_head, _), (body, _, head, _) in zip(before.seen, after.seen, strict=True):
        assert torch.equal(raw_head, head)
        assert not torch.equal(raw_body, body)


def test_a_step_that_the_guard_vetoes_is_not_remembered(tmp_path):
    bad = DATA.clone()
    bad[[10, 11, 30]] = torch.nan
    good = DATA[[index for index in range(60) if index not in (10, 11, 30)]]
    chains = []
    for data in (bad, good):
        callback = GradientTransforms([ZScoreClip(warmup_steps=5), AdaClip()])
        model = Model()
        fit(model, [SpikeGuard(), callback], data=data, max_steps=57, default_root_dir=tmp_path)
        chains.append((callback.state_dict()["chains"], [*model.parameters()]))
    (ours, weights), (theirs, expected) = chains
    assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
    assert torch.equal(ours[0][1]["mean"], theirs[0][1]["mean"])
    assert torch.equal(ours[0][1]["step"], theirs[0][1]["step"])


@pytest.mark.parametrize("fused", [False, True])
def test_under_a_gradient_scaler_it_sees_unscaled_gradients_and_no_overflow(fused):
    class Half(Model):
        def __init__(self):
            super().__init__(fused=fused)
            self.float()

        def training_step(self, batch, batch_idx):
            return super().training_step(batch.float(), batch_idx)

    data = DATA.clone()
    data[7] = torch.inf
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**8, growth_interval=1000)
    callback, model = GradientTransforms([AdaClip()]), Half()
    fit(model, [callback], data=data, max_steps=20, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    plain = GradientTransforms([AdaClip()])
    fit(Half(), [plain], data=data[[index for index in range(60) if index != 7]], max_steps=19)
    ours, theirs = (each.state_dict()["chains"][0][0] for each in (callback, plain))
    assert ours["step"].tolist() == theirs["step"].tolist()
    torch.testing.assert_close(
        ours["mean"], theirs["mean"], rtol=0.05, atol=1e-3
    )  # autocast computes in half precision


def test_it_logs_norms_before_and_after_and_the_share_that_was_clipped(tmp_path):
    chain = [GlobalNormClip(0.1), GlobalNormClip(0.05)]
    trainer = fit(Model(), [GradientTransforms(chain)], max_steps=6, log_every_n_steps=3, logger=CSVLogger(tmp_path))
    keys = {key for key in trainer.callback_metrics if key.startswith("stability/transforms/")}
    assert keys == {
        "stability/transforms/norm_before",
        "stability/transforms/norm_after",
        "stability/transforms/clip_rate/GlobalNormClip",
        "stability/transforms/clip_rate/GlobalNormClip2",
    }
    assert trainer.callback_metrics["stability/transforms/norm_after"] == pytest.approx(0.05)
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert [line.split(",")[lines[0].split(",").index("step")] for line in lines[1:]] == ["2", "5"]


def test_a_resume_is_bit_identical(tmp_path):
    def chain():
        return GradientTransforms([SpikeClip(threshold=9.0, start_after=4), ZScoreClip(warmup_steps=10), AdaClip()])

    straight, resumed = Model(), Model()
    fit(straight, [chain()], data=spiky())
    trainer = fit(Model(), [chain()], data=spiky(), max_steps=25)
    trainer.save_checkpoint(tmp_path / "mid.ckpt")
    fit(resumed, [chain()], data=spiky().roll(-25, 0), ckpt_path=tmp_path / "mid.ckpt")
    assert all(torch.equal(a, b) for a, b in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_a_checkpoint_of_another_chain_is_refused():
    callback = GradientTransforms([AdaClip(), ZScoreClip()])
    with pytest.raises(
        RuntimeError, match=r"holds the state of \['AdaClip'\], but the chain is \['AdaClip', 'ZScoreClip'\]"
    ):
        callback.load_state_dict(GradientTransforms(AdaClip()).state_dict())


def test_the_guard_must_stand_before_it():
    with pytest.raises(ValueError, match=r"must name `SpikeGuard` before `GradientTransforms`.*Write \[SpikeGuard"):
        fit(Model(), [GradientTransforms(), SpikeGuard()], max_steps=1)


def test_a_reset_that_spike_clip_does_not_know_of_is_refused():
    message = r"`SpikeClip\(reset_interval=...\)` must be 500, the `every_n_steps` of the .* got None"
    with pytest.raises(ValueError, match=message):
        fit(Model(), [GradientTransforms(SpikeClip()), MomentumReset(moments="all")], max_steps=1)
    fit(Model(), [GradientTransforms(SpikeClip()), MomentumReset()], max_steps=1)  # the second moment is kept


def test_bad_arguments_are_named():
    with pytest.raises(ValueError, match=r"`GradientTransforms\(transforms=...\)` must hold at least one transform"):
        GradientTransforms([])
    with pytest.raises(TypeError, match=r"`GradientTransforms\(transforms=...\)` must hold transforms.*got 0.5"):
        GradientTransforms([0.5])
