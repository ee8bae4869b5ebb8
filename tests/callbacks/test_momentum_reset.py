# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader

from lightning_stable.callbacks import MomentumReset
from lightning_stable.optim import StepGate

DATA = torch.randn(40, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)


class Model(LightningModule):
    def __init__(self, dtype=torch.float64, fused=False, schedule=False):
        super().__init__()
        torch.manual_seed(0)
        self.layer = torch.nn.Linear(4, 1, dtype=dtype)
        self.fused = fused
        self.schedule = schedule

    def training_step(self, batch, batch_idx):
        return self.layer(batch.to(self.layer.weight.dtype)).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.01, weight_decay=0.1, fused=self.fused)
        if not self.schedule:
            return optimizer
        scheduler = torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, total_steps=100, cycle_momentum=False)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}


class Manual(Model):
    def __init__(self, raw=False):
        super().__init__()
        self.automatic_optimization = False
        self.other = torch.nn.Linear(4, 1, dtype=torch.float64)
        self.raw = raw

    def training_step(self, batch, batch_idx):
        often, seldom = self.optimizers(use_pl_optimizer=not self.raw)
        for optimizer, layer in [(often, self.layer), (seldom, self.other)]:
            if optimizer is often or batch_idx % 2 == 0:
                optimizer.zero_grad()
                self.manual_backward(layer(batch).square().mean())
                optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(layer.parameters(), lr=0.01, momentum=0.9) for layer in (self.layer, self.other)]


class Watch(Callback):
    """Writes down what every step of the first optimizer ran with, from inside the step."""

    def __init__(self):
        self.rates, self.moments, self.steps = [], [], []

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_pre_hook(self.before)

    def before(self, optimizer, args, kwargs):
        state = optimizer.state[optimizer.param_groups[0]["params"][0]]
        moment = state.get("exp_avg", state.get("momentum_buffer"))
        self.rates.append(optimizer.param_groups[0]["lr"])
        self.moments.append(0.0 if moment is None else moment.abs().sum().item())
        self.steps.append(float(state.get("step", 0)))


def fit(model, callbacks, max_steps=30, ckpt_path=None, data=DATA, logger=False, **settings):
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        devices=1,
        callbacks=callbacks,
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    trainer.fit(model, DataLoader(data, batch_size=1), ckpt_path=ckpt_path)
    return trainer


def reference_momentum_reset(every, moments, warmup_steps, steps, lr=0.01, decay=0.1):
    """AdamW, the reset and the factor in one plain loop, on the weights of `Model`."""
    model = Model()
    parameters = [parameter.detach().clone() for parameter in model.parameters()]
    state = [[torch.zeros_like(parameter), torch.zeros_like(parameter)] for parameter in parameters]
    count = 0
    for step in range(1, steps + 1):
        x = DATA[step - 1 : step]
        weight, bias = parameters
        error = x @ weight.T + bias
        gradients = [2 * error.T @ x, 2 * error[0]]
        k, scale = step % every, 1.0
        if k == 0:
            count = 0 if moments == "all" else count
            state = [[m * 0, v * 0 if moments == "all" else v] for m, v in state]
        if step >= every and k < warmup_steps:
            scale = 1 - 0.99 * (1 + math.cos(math.pi * k / (warmup_steps + 1))) / 2
        count += 1
        for index, gradient in enumerate(gradients):
            m, v = state[index]
            m, v = 0.9 * m + 0.1 * gradient, 0.999 * v + 0.001 * gradient**2
            update = (m / (1 - 0.9**count)) / ((v / (1 - 0.999**count)).sqrt() + 1e-8)
            parameters[index] = parameters[index] * (1 - lr * scale * decay) - lr * scale * update
            state[index] = [m, v]
    return parameters


@pytest.mark.parametrize("moments", ["first", "all"])
@pytest.mark.parametrize(("every", "warmup_steps"), [(10, 4), (7, 0), (7, 6)])
def test_it_matches_a_plain_loop_of_adamw_reset_and_factor(moments, every, warmup_steps):
    model = Model()
    fit(model, [MomentumReset(every, moments, warmup_steps)])
    for ours, expected in zip(
        model.parameters(), reference_momentum_reset(every, moments, warmup_steps, 30), strict=True
    ):
        torch.testing.assert_close(ours.detach(), expected, rtol=1e-12, atol=1e-12)


def test_the_moments_are_zero_and_the_rate_a_hundredth_at_every_reset_step_and_only_there():
    watch = Watch()
    fit(Model(), [MomentumReset(10, warmup_steps=4), watch])
    assert [step for step, moment in enumerate(watch.moments) if moment == 0.0] == [0, 9, 19, 29]  # steps 10, 20, 30
    assert watch.rates[9] == watch.rates[19] == watch.rates[29] == pytest.approx(0.01 * 0.01)
    assert watch.rates[:9] == [0.01] * 9
    assert watch.rates[13:19] == [0.01] * 6
    assert watch.rates[9] < watch.rates[10] < watch.rates[11] < watch.rates[12] < 0.01


@pytest.mark.parametrize(("moments", "expected"), [("first", 9.0), ("all", 0.0)])
def test_bias_correction_starts_over_with_all_and_goes_on_with_first(moments, expected):
    watch = Watch()
    fit(Model(), [MomentumReset(10, moments, warmup_steps=4), watch], max_steps=12)
    assert watch.steps[9] == expected


def test_the_linear_warmup_rises_evenly():
    watch = Watch()
    fit(Model(), [MomentumReset(10, warmup_steps=4, warmup="linear"), watch], max_steps=15)
    assert watch.rates[9:14] == pytest.approx([0.01 * (0.01 + 0.99 * k / 4) for k in range(5)])


def test_a_schedule_in_closed_form_survives_the_factor():
    plain, reset = Watch(), Watch()
    fit(Model(schedule=True), [plain])
    trainer = fit(Model(schedule=True), [MomentumReset(10, warmup_steps=4), reset])
    scales = [1 - 0.99 * (1 + math.cos(math.pi * k / 5)) / 2 for k in range(4)]
    factors = [1.0] * 9 + (scales + [1.0] * 6) * 2 + scales[:1]
    assert reset.rates == [rate * factor for rate, factor in zip(plain.rates, factors, strict=True)]
    assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 30


@pytest.mark.parametrize("moments", ["first", "all"])
@pytest.mark.parametrize("saved_at", [10, 12, 19])
def test_resuming_in_mid_warmup_is_bit_identical(tmp_path, moments, saved_at):
    straight = Model(schedule=True)
    fit(straight, [MomentumReset(10, moments, warmup_steps=6)])
    trainer = fit(Model(schedule=True), [MomentumReset(10, moments, warmup_steps=6)], max_steps=saved_at)
    trainer.save_checkpoint(tmp_path / "mid.ckpt")
    torch.load(tmp_path / "mid.ckpt", weights_only=True)
    resumed = Model(schedule=True)
    callback = MomentumReset(10, moments, warmup_steps=6)
    fit(resumed, [callback], ckpt_path=tmp_path / "mid.ckpt", data=DATA.roll(-saved_at, 0))
    assert callback.state_dict() == {"steps_taken": [30]}
    assert torch.equal(resumed.layer.weight, straight.layer.weight)
    assert torch.equal(resumed.layer.bias, straight.layer.bias)


class Veto(Callback):
    """Vetoes some steps, as a guard does; the data are the same as if they had not been there."""

    def __init__(self, batches):
        self.batches, self.batch_idx = batches, 0

    def on_train_start(self, trainer, pl_module):
        self.gate = StepGate.attach(trainer.optimizers[0], user="veto")

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch_idx = batch_idx

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.gate.veto = self.batch_idx in self.batches


@pytest.mark.parametrize("veto_first", [True, False])
@pytest.mark.parametrize("moments", ["first", "all"])
def test_a_vetoed_step_never_happened(moments, veto_first):
    bad = [3, 9, 10, 11, 13]
    clean, vetoed = Model(), Model()
    good = torch.stack([row for index, row in enumerate(DATA) if index not in bad])
    fit(clean, [MomentumReset(10, moments, warmup_steps=6)], max_steps=25, data=good)
    callbacks = [Veto(bad), MomentumReset(10, moments, warmup_steps=6)]
    fit(vetoed, callbacks if veto_first else callbacks[::-1], max_steps=30)
    assert torch.equal(clean.layer.weight, vetoed.layer.weight)


class Rollback(Callback):
    """Goes back in the middle of the run: weights, optimizer, the other callbacks' state."""

    def __init__(self, snapshot_at, back_at):
        self.snapshot_at, self.back_at = snapshot_at, back_at

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.snapshot_at:
            states = [callback.state_dict() for callback in trainer.callbacks]
            optimizer = trainer.optimizers[0].state_dict()
            self.snapshot = copy.deepcopy((pl_module.state_dict(), optimizer, states))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.back_at:
            weights, optimizer, states = self.snapshot
            pl_module.load_state_dict(weights)
            trainer.optimizers[0].load_state_dict(optimizer)
            for callback, state in zip(trainer.callbacks, states, strict=True):
                callback.load_state_dict(state)


@pytest.mark.parametrize(("snapshot_at", "back_at"), [(8, 11), (10, 10), (12, 15), (5, 25)])
def test_a_rollback_in_process_takes_the_count_back_too(snapshot_at, back_at):
    lost = range(snapshot_at, back_at + 1)
    kept = torch.stack([row for index, row in enumerate(DATA) if index not in lost])
    clean, rolled_back = Model(), Model()
    fit(clean, [MomentumReset(10, warmup_steps=6)], max_steps=30 - len(lost), data=kept)
    callback = MomentumReset(10, warmup_steps=6)
    fit(rolled_back, [Rollback(snapshot_at, back_at), callback], max_steps=30)
    assert callback.state_dict() == {"steps_taken": [30 - len(lost)]}
    assert torch.equal(clean.layer.weight, rolled_back.layer.weight)


def test_accumulated_batches_count_as_the_one_step_they_make():
    watch = Watch()
    fit(Model(), [MomentumReset(5, warmup_steps=2), watch], max_steps=20, accumulate_grad_batches=2)
    assert [step for step, moment in enumerate(watch.moments) if moment == 0.0] == [0, 4, 9, 14, 19]


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_grad_scaler_skips_does_not_count(fused):
    bad = DATA.clone()
    bad[[4, 9, 10]] = math.inf
    scaler = torch.amp.GradScaler("cpu", init_scale=1.0)
    model, callback = Model(torch.float32, fused), MomentumReset(5, warmup_steps=2)
    fit(model, [callback], max_steps=20, data=bad, plugins=[MixedPrecision("16-mixed", "cpu", scaler)])
    assert callback.state_dict() == {"steps_taken": [17]}
    assert torch.isfinite(model.layer.weight).all()


def test_a_fresh_fit_starts_counting_anew():
    callback = MomentumReset(10, warmup_steps=2)
    for _ in range(2):
        fit(Model(), [callback], max_steps=7)
        assert callback.state_dict() == {"steps_taken": [7]}


@pytest.mark.parametrize("raw", [False, True])
def test_with_manual_optimization_every_optimizer_counts_its_own_steps(raw):
    callback, watch = MomentumReset(6, warmup_steps=2), Watch()
    fit(Manual(raw), [callback, watch], max_steps=-1, max_epochs=1, limit_train_batches=20)
    assert callback.state_dict() == {"steps_taken": [20, 10]}
    assert [step for step, moment in enumerate(watch.moments) if moment == 0.0] == [0, 5, 11, 17]


def test_the_optimizer_is_left_as_it_was_found():
    trainer = fit(Model(), [MomentumReset(10, warmup_steps=2)], max_steps=12)
    assert "step" not in vars(trainer.optimizers[0])
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.01


def test_the_optimizer_is_left_as_it_was_found_after_an_exception_too():
    class Failing(Model):
        def training_step(self, batch, batch_idx):
            if batch_idx == 12:
                self.optimizer = self.trainer.optimizers[0]
                raise RuntimeError("on purpose")
            return super().training_step(batch, batch_idx)

    model = Failing()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(model, [MomentumReset(10, warmup_steps=5)])
    assert "step" not in vars(model.optimizer)


def test_it_logs_resets_at_once_and_the_factor_at_the_trainer_s_cadence(tmp_path):
    logger = CSVLogger(tmp_path)
    fit(Model(), [MomentumReset(10, warmup_steps=4)], logger=logger, log_every_n_steps=6)
    text = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    header = text[0].split(",")
    cells = [dict(zip(header, line.split(","), strict=True)) for line in text[1:]]
    resets = {int(row["step"]): float(row[key]) for row in cells if row[(key := "stability/momentum_reset")]}
    scales = {int(row["step"]): float(row[key]) for row in cells if row[(key := "stability/lr_scale/momentum_reset")]}
    assert resets == {9: 1.0, 19: 2.0, 29: 3.0}
    assert sorted(scales) == [5, 9, 11, 17, 19, 23, 29]
    assert scales[9] == scales[29] == pytest.approx(0.01)
    assert scales[17] == 1.0


def test_several_optimizers_log_under_their_own_keys():
    model = Manual()
    trainer = fit(model, [MomentumReset(6, warmup_steps=2)], max_steps=-1, max_epochs=1, limit_train_batches=20)
    assert trainer.callback_metrics["stability/momentum_reset/0"] == 3
    assert trainer.callback_metrics["stability/momentum_reset/1"] == 1


def test_a_checkpoint_for_other_optimizers_is_refused(tmp_path):
    callback = MomentumReset()

    class Load(Callback):
        def on_fit_start(self, trainer, pl_module):
            callback.load_state_dict({"steps_taken": [1, 2]})

    with pytest.raises(RuntimeError, match="counts the steps of 2 optimizers, but there are 1 now"):
        fit(Model(), [Load(), callback])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"every_n_steps": 0}, r"`MomentumReset\(every_n_steps=\.\.\.\)` must be at least 1, got 0"),
        ({"moments": "second"}, r'`MomentumReset\(moments=\.\.\.\)` must be "first" or "all", got \'second\''),
        ({"every_n_steps": 9, "warmup_steps": 9}, r"must be at least 0 and less than `every_n_steps` \(9\).*got 9"),
        ({"warmup_steps": -1}, r"`MomentumReset\(warmup_steps=\.\.\.\)` must be at least 0 and less .*got -1"),
        ({"warmup": "cubic"}, r'`MomentumReset\(warmup=\.\.\.\)` must be "cosine" or "linear", got \'cubic\''),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        MomentumReset(**arguments)
