# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_stable.callbacks import DropoutSchedule
from lightning_stable.detectors import NonFinite
from lightning_stable.guard import Halt, Rollback, SkipStep, SpikeGuard
from lightning_stable.testbeds import GPT
from tests.faulty_runs import TextNet, assert_same, make_batches, run

DATA = torch.randn(60, 4, generator=torch.Generator().manual_seed(3))


class Model(LightningModule):
    """Rates of two sizes, one of them handed to a function."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(nn.Linear(4, 8), nn.Dropout(0.2), nn.Linear(8, 1))
        self.dropout = 0.5
        self.val_outputs = []

    def forward(self, x):
        return self.layers(F.dropout(x, self.dropout, self.training))

    def training_step(self, batch, batch_idx):
        torch.manual_seed(batch_idx)  # the masks of a step, whatever was drawn before
        return self(batch).square().mean()

    def validation_step(self, batch, batch_idx):
        self.val_outputs.append(self(batch))

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01)


class Watch(Callback):
    """The rates that every batch was trained with."""

    def __init__(self):
        self.rates = []

    def on_before_backward(self, trainer, pl_module, loss):
        self.rates.append((pl_module.layers[1].p, pl_module.dropout))


def fit(callback, model=None, max_steps=12, ckpt_path=None, data=DATA, extra=(), watch=True, logger=False, **settings):
    model, watching = model or Model(), [Watch()] if watch else []
    trainer = Trainer(
        max_steps=max_steps,
        accelerator="cpu",
        devices=1,
        callbacks=[callback, *extra, *watching],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **settings,
    )
    trainer.fit(model, DataLoader(data), DataLoader(DATA[:2]), ckpt_path=ckpt_path)
    return model, trainer, watching[0].rates if watch else []


def reference(mode, shape, step, cutoff):
    if mode == "standard":
        return 1.0
    if mode == "late":
        return 0.0 if step < cutoff else 1.0
    if step >= cutoff:
        return 0.0
    return 1.0 if shape == "constant" else 1.0 - step / cutoff


# The schedule


@pytest.mark.parametrize("cutoff", [0, 1, 5, 12, 20])
@pytest.mark.parametrize(
    ("mode", "shape"), [("early", "linear"), ("early", "constant"), ("late", "linear"), ("standard", "linear")]
)
def test_every_step_has_the_rates_of_the_closed_form(mode, shape, cutoff):
    _, _, rates = fit(DropoutSchedule(mode, steps=cutoff, shape=shape))
    factors = [reference(mode, shape, step, cutoff) for step in range(12)]
    assert rates == [(factor * 0.2, factor * 0.5) for factor in factors]


def test_steps_are_optimizer_steps_and_not_batches():
    _, _, rates = fit(DropoutSchedule(steps=4), max_steps=6, accumulate_grad_batches=3)
    factors = [reference("early", "linear", batch // 3, 4) for batch in range(18)]
    assert [rate for _, rate in rates] == pytest.approx([0.5 * factor for factor in factors])


def test_epochs_and_fractions_are_as_long_as_the_steps_they_have():
    _, _, in_epochs = fit(DropoutSchedule("late", epochs=2), max_steps=-1, max_epochs=4, limit_train_batches=3)
    _, _, in_parts = fit(DropoutSchedule("late", fraction=0.5), max_steps=12)
    assert in_epochs == in_parts == [(0.0, 0.0)] * 6 + [(0.2, 0.5)] * 6


def test_the_default_is_early_for_a_sixth_of_the_run():
    _, _, rates = fit(DropoutSchedule())
    assert [rate for _, rate in rates] == [0.5, 0.25] + 10 * [0.0]


@pytest.mark.parametrize("levels", [1, 2, 3])
def test_levels_are_held_for_equally_long(levels):
    _, _, rates = fit(DropoutSchedule(steps=6, levels=levels), max_steps=8)
    seen = [rate for _, rate in rates]
    expected = [0.5 * (levels - level) / levels for level in range(levels) for _ in range(6 // levels)]
    assert seen == pytest.approx([*expected, 0.0, 0.0])


def test_a_step_is_that_of_a_model_made_with_the_rates():
    model = Model()
    made = copy.deepcopy(model)
    made.layers[1].p, made.dropout = 0.2 * 0.75, 0.5 * 0.75
    at_step_1 = Model()
    fit(DropoutSchedule(steps=4), model=at_step_1, max_steps=1)
    made.load_state_dict(at_step_1.state_dict())
    fit(DropoutSchedule("standard"), model=made, max_steps=1, data=DATA[1:])
    scheduled, _, _ = fit(DropoutSchedule(steps=4), max_steps=2)
    torch.manual_seed(1)
    made.load_state_dict(at_step_1.state_dict())
    made.train()
    loss = made(DATA[1:2]).square().mean()
    made.zero_grad()
    loss.backward()
    with torch.no_grad():
        for parameter in made.parameters():
            parameter -= 0.01 * parameter.grad
    for ours, theirs in zip(scheduled.parameters(), made.parameters(), strict=True):
        torch.testing.assert_close(ours, theirs)


# What it leaves alone


def test_validation_is_as_without_dropout():
    model, _, _ = fit(DropoutSchedule(steps=12), val_check_interval=4)
    torch.testing.assert_close(model.val_outputs[-1], model.eval()(DATA[1:2]))
    assert len(model.val_outputs) == 6


def own_rates(model):
    return model.layers[1].p, model.dropout


def test_every_module_has_its_own_rate_back_when_fit_has_ended():
    callback, model = DropoutSchedule("early", steps=3), Model()
    for _ in range(2):
        _, _, rates = fit(callback, model)
        assert rates[0] == own_rates(model) == (0.2, 0.5)


class Fail(Callback):
    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        raise RuntimeError("on purpose")


def test_so_it_is_when_fit_breaks_off():
    model = Model()
    with pytest.raises(RuntimeError, match="on purpose"):
        fit(DropoutSchedule("late", steps=30), model=model, extra=[Fail()])
    assert own_rates(model) == (0.2, 0.5)


def test_standard_touches_nothing_and_needs_no_dropout():
    class Plain(Model):
        def __init__(self):
            super().__init__()
            self.layers[1] = nn.Identity()
            del self.dropout

        def forward(self, x):
            return self.layers(x)

    fit(DropoutSchedule("standard"), Plain(), watch=False)
    with pytest.raises(
        ValueError, match=r"`DropoutSchedule` finds no dropout in Plain: .*'p', 'drop_prob'.*attributes"
    ):
        fit(DropoutSchedule("early"), Plain(), watch=False)


# Checkpoints and rollbacks


@pytest.mark.parametrize("mode", ["early", "late"])
@pytest.mark.parametrize("saved_at", [2, 6, 9])
def test_a_run_resumed_in_mid_schedule_equals_an_uninterrupted_one(mode, saved_at, tmp_path):
    straight, _, rates = fit(DropoutSchedule(mode, steps=8))
    _, trainer, before = fit(DropoutSchedule(mode, steps=8), max_steps=saved_at)
    trainer.save_checkpoint(tmp_path / "mid.ckpt")
    resumed, _, after = fit(
        DropoutSchedule(mode, steps=8), ckpt_path=tmp_path / "mid.ckpt", data=DATA.roll(-saved_at, 0)
    )
    assert before + after == rates
    # `training_step` seeds by the index of the batch, which goes on
    assert torch.equal(straight.layers[0].weight, resumed.layers[0].weight)


class SaveInMidRun(Callback):
    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 5:
            trainer.save_checkpoint(self.path)


def test_a_checkpoint_of_mid_run_holds_the_modules_own_rates(tmp_path):
    _, _, rates = fit(DropoutSchedule("late", steps=8), extra=[SaveInMidRun(tmp_path / "mid.ckpt")])
    saved = torch.load(tmp_path / "mid.ckpt", weights_only=True)
    assert saved["callbacks"]["DropoutSchedule"] == {"rates": {"dropout": 0.5, "layers.1.p": 0.2}}
    found = Model()  # as it is found in mid-run: pickled as a whole, say
    found.layers[1].p = found.dropout = 0.0
    _, _, after = fit(
        DropoutSchedule("late", steps=8), model=found, ckpt_path=tmp_path / "mid.ckpt", data=DATA.roll(-6, 0)
    )
    assert after == rates[6:]
    assert own_rates(found) == (0.2, 0.5)


@pytest.mark.parametrize("rates", [None, [0.1], {"p": 2.0}, {"p": math.nan}, {"p": "0.1"}])
def test_a_checkpoint_with_absurd_rates_is_refused(rates):
    with pytest.raises(ValueError, match=r"The checkpoint of `DropoutSchedule` must hold rates from 0 to 1 by name"):
        DropoutSchedule().load_state_dict({"rates": rates})


@pytest.mark.parametrize("response", [SkipStep, lambda: Rollback(mode="replay")])
@pytest.mark.parametrize("mode", ["early", "late"])
def test_beside_a_guard_a_bad_batch_leaves_no_trace(mode, response):
    def guarded(batches):
        guard = SpikeGuard(watch={"loss": NonFinite()}, ladder=[response(), Halt()], snapshot_every=3)
        return run(batches, [guard, DropoutSchedule(mode, steps=7)], model=TextNet)

    bad = guarded(make_batches(12, bad={5}, kind="text"))
    clean = guarded([batch for index, batch in enumerate(make_batches(12, kind="text")) if index != 5])
    assert bad.global_step == 22
    assert_same(bad, clean)


# Logs


def test_the_factor_is_logged(tmp_path):
    _, trainer, _ = fit(DropoutSchedule(steps=4), logger=CSVLogger(tmp_path), log_every_n_steps=2)
    trainer.logger.save()
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert lines[0].split(",") == ["stability/dropout_scale", "step"]
    assert [tuple(map(float, line.split(","))) for line in lines[1:]] == [
        (0.75, 1), (0.25, 3), (0.0, 5), (0.0, 7), (0.0, 9), (0.0, 11),
    ]  # fmt: skip


# The paper's property


class Logistic(LightningModule):
    """A model too small for its data, at a high learning rate."""

    def __init__(self, seed):
        super().__init__()
        generator = torch.Generator().manual_seed(seed)
        self.signs = torch.randint(2, (1024,), generator=generator) * 2.0 - 1.0
        self.x = 0.3 * self.signs[:, None] + torch.randn(1024, 16, generator=generator)
        torch.manual_seed(seed)
        self.layers = nn.Sequential(nn.Dropout(0.5), nn.Linear(16, 1))

    def loss(self, index):
        return F.softplus(-self.signs[index] * self.layers(self.x[index])[:, 0]).mean()

    def training_step(self, batch, batch_idx):
        return self.loss(batch)

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=5.0)


class DirectionVariance(Callback):
    """The paper's measure: the mean of (1 - cosine) / 2 over all pairs of gradients of mini-batches."""

    def __init__(self):
        self.values = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx % 10 != 9:
            return
        generator = torch.Generator().manual_seed(batch_idx)
        directions = []
        for _ in range(16):
            loss = pl_module.loss(torch.randperm(1024, generator=generator)[:64])
            gradients = torch.autograd.grad(loss, list(pl_module.parameters()))
            directions.append(F.normalize(torch.cat([gradient.flatten() for gradient in gradients]), dim=0))
        cosines = torch.stack(directions) @ torch.stack(directions).T
        pairs = [(1 - cosines[i, j].item()) / 2 for i in range(16) for j in range(i)]
        self.values.append(sum(pairs) / len(pairs))


def direction_variance(mode, seed):
    order = torch.Generator().manual_seed(seed)
    batches = [torch.randperm(1024, generator=order)[:64] for _ in range(60)]
    measure = DirectionVariance()
    trainer = Trainer(
        max_steps=60,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[DropoutSchedule(mode, steps=60, shape="constant"), measure],
    )
    trainer.fit(Logistic(seed), DataLoader(batches, batch_size=None))
    return sum(measure.values) / len(measure.values)


@pytest.mark.parametrize("seed", range(3))
def test_early_dropout_makes_gradients_of_mini_batches_point_in_more_similar_directions(seed):
    """`late` has none in the same steps, and nothing else is different."""
    assert direction_variance("early", seed) < 0.85 * direction_variance("late", seed)


# Other models


def test_all_rates_of_a_gpt_follow():
    class Language(Model):
        def __init__(self):
            super().__init__()
            self.gpt = GPT(vocab_size=8, n_layer=2, n_head=2, d_model=8, context=4, dropout=0.4)

        def training_step(self, batch, batch_idx):
            self.seen = [self.gpt.dropout] + [
                part.dropout for block in self.gpt.blocks for part in (block.attn, block.mlp)
            ]
            return self.gpt(batch.long().abs().clamp(max=7)).mean()

    model, _, _ = fit(DropoutSchedule(steps=4), model=Language(), max_steps=2)
    assert model.seen == [0.4 * 0.75] * 5
    assert model.gpt.blocks[1].attn.dropout == 0.4


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"mode": "middle"}, r'`DropoutSchedule\(mode=...\)` must be "early", "late" or "standard", got \'middle\'\.'),
        ({"shape": "cosine"}, r'`DropoutSchedule\(shape=...\)` must be "linear" or "constant", got \'cosine\'\.'),
        ({"levels": -1}, r"`DropoutSchedule\(levels=...\)` must be a whole number of at least 0, got -1\."),
        ({"levels": True}, r"`DropoutSchedule\(levels=...\)` must be a whole number of at least 0, got True\."),
        ({"attributes": []}, r"`DropoutSchedule\(attributes=...\)` must name at least one attribute, got \[\]\."),
        ({"steps": -1}, r"`DropoutSchedule\(steps=...\)` must be a whole number of at least 0, got -1\."),
        ({"steps": 1, "epochs": 1}, r"`DropoutSchedule\(steps=...\)` must be None if `epochs` is given \(1\), got 1\."),
        ({"fraction": math.nan}, r"`DropoutSchedule\(fraction=...\)` must be in \[0, 1\], got nan\."),
    ],
)
def test_an_argument_out_of_its_bounds_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        DropoutSchedule(**arguments)
