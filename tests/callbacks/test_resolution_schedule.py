# SPDX-License-Identifier: Apache-2.0
import math
from itertools import accumulate

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import GradientAccumulationScheduler
from lightning.pytorch.loggers import CSVLogger
from torch import nn
from torch.nn import functional as F
from torch.utils.data import DataLoader

from lightning_stable.callbacks import AdaptiveBatchSize, ResolutionSchedule, TrainingBudget
from lightning_stable.detectors import NonFinite
from lightning_stable.functional import low_frequency_crop
from lightning_stable.guard import Halt, Rollback, SkipData, SkipStep, SpikeGuard
from lightning_stable.schedules import Linear, ProfileLR

GENERATOR = torch.Generator().manual_seed(0)
IMAGES = [{"pixels": torch.rand(2, 1, 8, 8, generator=GENERATOR), "targets": torch.tensor([0, 1])} for _ in range(16)]


@pytest.fixture(autouse=True)
def write_elsewhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)  # a guard without a logger writes its incidents to where it runs


class Classifier(LightningModule):
    def __init__(self, scheduled=False, interval="step", **schedule):
        super().__init__()
        torch.manual_seed(0)
        self.conv = nn.Conv2d(1, 3, 3, padding=1)
        self.scheduled, self.interval, self.schedule = scheduled, interval, schedule
        self.seen, self.val_shapes = [], []

    def loss(self, batch):
        return F.cross_entropy(self.conv(batch["pixels"]).relu().mean(dim=(2, 3)), batch["targets"])

    def training_step(self, batch, batch_idx):
        self.seen.append(batch["pixels"].clone())
        return self.loss(batch)

    def validation_step(self, batch, batch_idx):
        self.val_shapes.append(tuple(batch["pixels"].shape))

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=0.1)
        if not self.scheduled:
            return optimizer
        settings = self.schedule or {"total_steps": int(self.trainer.estimated_stepping_batches)}
        schedule = ProfileLR(optimizer, Linear(), **settings)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": self.interval}}


class Watch(Callback):
    """Of every step: how many batches went into it, of which size, and its learning rate."""

    def __init__(self):
        self.steps, self.sizes, self.rates, self.epochs = [], [], [], []
        self.micro = 0

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_pre_hook(self.before)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.micro += 1
        self.size = tuple(batch["pixels"].shape[2:])

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.steps.append(self.micro)
        self.sizes.append(self.size)
        self.epochs.append(trainer.current_epoch)
        self.micro = 0

    def before(self, optimizer, args, kwargs):
        self.rates.append(optimizer.param_groups[0]["lr"])


def fit(callback, images=IMAGES, model=None, extra=(), logger=False, ckpt_path=None, **settings):
    model, watch = model or Classifier(), Watch()
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        callbacks=[*extra, callback, watch],
        logger=logger,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        **{"max_epochs": 3, **settings},
    )
    validation = DataLoader(IMAGES[:2], batch_size=None)
    trainer.fit(model, DataLoader(images, batch_size=None), validation, ckpt_path=ckpt_path)
    return model, trainer, watch


# The stages


def test_by_default_small_images_come_first_in_batches_that_cost_as_much():
    _, trainer, watch = fit(ResolutionSchedule())
    assert watch.sizes == 4 * [(4, 4)] + 8 * [(6, 6)] + 16 * [(8, 8)]
    assert watch.steps == 4 * [4] + 8 * [2] + 16 * [1]
    assert trainer.accumulate_grad_batches == 1


@pytest.mark.parametrize("full_window", [1, 2, 4, 8])
@pytest.mark.parametrize("scales", [[0.5, 0.75, 1.0], [5 / 8, 7 / 8, 1.0], [0.25, 1.0, 0.5]])
def test_the_pixels_of_a_step_stay_the_same_within_rounding(scales, full_window):
    images = [{"pixels": torch.rand(1, 1, 8, 8), "targets": torch.tensor([0])}] * 128
    _, _, watch = fit(ResolutionSchedule(scales), images, accumulate_grad_batches=full_window)
    for epoch, scale in enumerate(scales):
        steps = [count for count, at in zip(watch.steps, watch.epochs, strict=True) if at == epoch]
        window = round(full_window / scale**2)
        assert set(steps[:-1]) <= {window}  # the last one of an epoch may be cut short
        assert abs(window * (8 * scale) ** 2 - full_window * 64) <= 0.5 * (8 * scale) ** 2  # half a batch at most
        assert sum(steps) == 128


def test_epochs_and_steps_can_be_named_and_shares_be_unequal():
    for schedule in (
        ResolutionSchedule([0.5, 1.0], epochs=[1]),
        ResolutionSchedule([0.5, 1.0], steps=[4]),
        ResolutionSchedule([0.5, 1.0], shares=[0.25, 0.75]),
    ):
        _, _, watch = fit(schedule, max_epochs=4)
        assert watch.sizes == 4 * [(4, 4)] + 48 * [(8, 8)]
    _, _, watch = fit(ResolutionSchedule([0.5, 1.0], shares=[0.25, 0.75]), max_epochs=-1, max_steps=16)
    assert watch.sizes == 4 * [(4, 4)] + 12 * [(8, 8)]
    assert watch.steps == 4 * [4] + 12 * [1]


@pytest.mark.parametrize(("scales", "windows"), [([0.75, 1.0], [7, 4, 4, 4]), ([1.0, 0.75], [4, 7, 7, 7])])
def test_where_a_stage_begins_in_mid_epoch_no_gradient_of_the_last_step_is_left(scales, windows):
    class Even(Classifier):
        def training_step(self, batch, batch_idx):
            return self.conv.bias.sum()

        def on_before_optimizer_step(self, optimizer):
            self.seen.append(self.conv.bias.grad.tolist())

    model, _, watch = fit(ResolutionSchedule(scales, steps=[1]), model=Even(), max_epochs=1, accumulate_grad_batches=4)
    shares = [count / window for count, window in zip(watch.steps, windows, strict=True)]
    assert model.seen == [pytest.approx([share] * 3) for share in shares]


def test_images_are_resized_as_the_method_says_and_nothing_else_is():
    bilinear, _, _ = fit(ResolutionSchedule([0.5, 1.0], epochs=[1]), max_epochs=1)
    low, _, _ = fit(ResolutionSchedule([0.5, 1.0], epochs=[1], method="low_frequency"), max_epochs=1)
    for index, batch in enumerate(IMAGES):
        expected = F.interpolate(batch["pixels"], (4, 4), mode="bilinear", antialias=True)
        assert torch.equal(bilinear.seen[index], expected)
        assert torch.equal(low.seen[index], low_frequency_crop(batch["pixels"], 4, 4))
        assert batch["pixels"].shape == (2, 1, 8, 8)


def test_sizes_are_multiples_and_sides_keep_their_ratio():
    wide = [{"pixels": torch.rand(2, 1, 8, 16), "targets": torch.tensor([0, 1])}] * 4
    _, _, watch = fit(ResolutionSchedule([0.55, 1.0], epochs=[1], multiple_of=4), wide, max_epochs=2)
    assert watch.sizes[0] == (4, 8)
    assert watch.sizes[-1] == (8, 16)


def test_places_can_be_named():
    masks = [{**batch, "mask": torch.rand(2, 1, 8, 8)} for batch in IMAGES[:4]]

    class Masked(Classifier):
        def training_step(self, batch, batch_idx):
            self.masks = batch["mask"].shape
            return super().training_step(batch, batch_idx)

    both, _, _ = fit(ResolutionSchedule([0.5]), masks, Masked(), max_epochs=1)
    one, _, _ = fit(ResolutionSchedule([0.5], keys=["pixels"]), masks, Masked(), max_epochs=1)
    assert (both.masks[-1], one.masks[-1]) == (4, 8)
    assert one.seen[0].shape[-1] == 4


def test_validation_has_full_images():
    model, _, _ = fit(ResolutionSchedule([0.5]))
    assert set(model.val_shapes) == {(2, 1, 8, 8)}


@pytest.mark.parametrize("precision", ["bf16-true", "64-true", "bf16-mixed"])
def test_precisions(precision):
    for method in ("bilinear", "low_frequency"):
        model, _, _ = fit(ResolutionSchedule([0.5], method=method), precision=precision, max_epochs=1)
        assert all(parameter.isfinite().all() for parameter in model.parameters())


# The learning rate


@pytest.mark.parametrize(("rule", "factors"), [("none", (1, 1)), ("linear", (4, 2)), ("sqrt", (2, 2**0.5))])
def test_the_learning_rate_follows_the_batch_by_the_rule(rule, factors):
    _, trainer, watch = fit(ResolutionSchedule(lr_rule=rule))
    expected = 4 * [0.1 * factors[0]] + 8 * [0.1 * factors[1]] + 16 * [0.1]
    assert watch.rates == pytest.approx(expected)
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1


def test_a_schedule_in_steps_ends_with_the_run_and_not_before():
    _, trainer, watch = fit(ResolutionSchedule(), model=Classifier(scheduled=True))
    schedule = trainer.lr_scheduler_configs[0].scheduler
    assert schedule.total_steps == schedule.position == 48
    assert watch.rates == pytest.approx(
        [0.1 * (1 - used / 48) for used in (*range(0, 16, 4), *range(16, 32, 2), *range(32, 48))]
    )
    assert schedule.increment == 1


def test_the_first_step_of_a_warmup_has_the_rate_of_its_end():
    model = Classifier(True, total_steps=48, warmup_steps=16)
    _, _, watch = fit(ResolutionSchedule(lr_rule="sqrt"), model=model)
    assert watch.rates[:5] == pytest.approx([0.05, 0.1, 0.15, 0.2, 0.1 * 2**0.5])


def test_a_schedule_that_is_stepped_once_an_epoch_goes_on_by_one():
    _, trainer, watch = fit(ResolutionSchedule(), model=Classifier(True, interval="epoch", total_steps=3))
    assert watch.rates == pytest.approx(4 * [0.1] + 8 * [0.1 * 2 / 3] + 16 * [0.1 / 3])
    assert trainer.lr_scheduler_configs[0].scheduler.position == 3


def test_it_does_so_if_epochs_are_no_multiples_of_the_batch():
    model = Classifier(scheduled=True)
    _, trainer, watch = fit(ResolutionSchedule([0.5, 1.0]), IMAGES[:9], model, max_epochs=2, accumulate_grad_batches=2)
    assert watch.steps == [8, 1, 2, 2, 2, 2, 1]
    assert trainer.lr_scheduler_configs[0].scheduler.position == 10
    assert watch.rates == pytest.approx([0.1 * (1 - used / 10) for used in (0, 4, 5, 6, 7, 8, 9)])


@pytest.mark.parametrize(("unit", "total", "a_batch"), [("epochs", 3, 1 / 16), ("samples", 96, 2)])
def test_a_schedule_in_epochs_or_samples_ends_with_the_run_as_well(unit, total, a_batch):
    model = Classifier(True, unit=unit, total_steps=total)
    _, trainer, watch = fit(ResolutionSchedule(), model=model, extra=[TrainingBudget(unit="samples")])
    assert trainer.lr_scheduler_configs[0].scheduler.position == pytest.approx(total)
    used = [a_batch * count for count in accumulate([0, *watch.steps[:-1]])]
    assert watch.rates == pytest.approx([0.1 * (1 - done / total) for done in used])


def test_in_a_run_of_steps_a_step_is_a_step():
    _, trainer, _ = fit(
        ResolutionSchedule([0.5, 1.0], steps=[4]), model=Classifier(scheduled=True), max_epochs=-1, max_steps=12
    )
    assert trainer.lr_scheduler_configs[0].scheduler.position == 12


# Resume and guard


class Save(Callback):
    def __init__(self, path, batch, epoch):
        self.path, self.at = path, (batch, epoch)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (batch_idx, trainer.current_epoch) == self.at:
            trainer.save_checkpoint(self.path)


@pytest.mark.parametrize(("batch", "epoch"), [(7, 0), (15, 0), (3, 1), (15, 1), (5, 2)])
def test_a_run_resumed_in_any_stage_equals_an_uninterrupted_one(batch, epoch, tmp_path):
    path = tmp_path / "mid.ckpt"
    guard = [SpikeGuard()]  # with which a resume in mid-epoch goes on with the next batch
    straight, _, whole = fit(
        ResolutionSchedule(lr_rule="linear"), model=Classifier(scheduled=True), extra=[*guard, Save(path, batch, epoch)]
    )
    resumed, _, rest = fit(
        ResolutionSchedule(lr_rule="linear"), model=Classifier(scheduled=True), extra=[SpikeGuard()], ckpt_path=path
    )
    assert torch.equal(straight.conv.weight, resumed.conv.weight)
    assert whole.rates[-len(rest.rates) :] == rest.rates
    assert whole.sizes[-len(rest.sizes) :] == rest.sizes


@pytest.mark.parametrize("response", [lambda: SkipStep(times=9), lambda: Rollback(mode="replay", times=9)])
def test_beside_a_guard_a_bad_window_leaves_no_trace(response):
    """The whole window of four is left out."""

    def guarded(images):
        guard = SpikeGuard(watch={"loss": NonFinite()}, ladder=[response(), Halt()], snapshot_every=2)
        schedule = ResolutionSchedule([0.5, 0.5**0.5], lr_rule="sqrt", epochs=[1])
        return fit(schedule, images, extra=[guard], max_epochs=1)

    broken = {**IMAGES[5], "pixels": IMAGES[5]["pixels"] * float("nan")}
    spiked, trainer, _ = guarded([*IMAGES[:5], broken, *IMAGES[6:]])
    clean, _, _ = guarded([*IMAGES[:4], *IMAGES[8:]])
    assert trainer.global_step == 3
    assert torch.equal(spiked.conv.weight, clean.conv.weight)


def test_windows_that_a_guard_passes_over_are_not_part_of_the_next_step():
    guard = SpikeGuard(watch={"loss": NonFinite()}, ladder=[SkipData(batches=4), Halt()], snapshot_every=1)
    broken = {**IMAGES[5], "pixels": IMAGES[5]["pixels"] * float("nan")}
    images = [*IMAGES[:5], broken, *IMAGES[6:]]
    _, trainer, _ = fit(ResolutionSchedule([0.5]), images, Classifier(True), [guard], max_epochs=1)
    assert trainer.global_step == 2
    assert trainer.lr_scheduler_configs[0].scheduler.position == 8


def test_nothing_is_left_behind_when_fit_breaks_off():
    class Breaks(Classifier):
        def training_step(self, batch, batch_idx):
            raise RuntimeError("on purpose")

    trainer = Trainer(
        accelerator="cpu", logger=False, enable_checkpointing=False, enable_progress_bar=False, max_epochs=3,
        enable_model_summary=False, callbacks=[ResolutionSchedule(lr_rule="linear")], num_sanity_val_steps=0,
    )  # fmt: skip
    model = Breaks()
    with pytest.raises(RuntimeError, match="on purpose"):
        trainer.fit(model, DataLoader(IMAGES, batch_size=None), DataLoader(IMAGES[:1], batch_size=None))
    assert trainer.accumulate_grad_batches == 1
    assert "batch_to_device" not in vars(trainer.strategy)


def test_size_and_batch_are_logged(tmp_path):
    _, trainer, _ = fit(ResolutionSchedule(), logger=CSVLogger(tmp_path), log_every_n_steps=4)
    trainer.logger.save()
    lines = (tmp_path / "lightning_logs" / "version_0" / "metrics.csv").read_text().splitlines()
    assert set(lines[0].split(",")) == {"stability/batch_scale", "stability/resolution_scale", "step"}
    assert len(lines) > 7


# Errors


class Manual(Classifier):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


def test_what_cannot_work_is_refused():
    with pytest.raises(RuntimeError, match=r"`ResolutionSchedule` accumulates batches, and leaves that to Lightning"):
        fit(ResolutionSchedule(), model=Manual())
    for rival in (GradientAccumulationScheduler({0: 2}), AdaptiveBatchSize()):
        with pytest.raises(RuntimeError, match=rf"`ResolutionSchedule` and `{type(rival).__name__}` both set"):
            fit(ResolutionSchedule(), extra=[rival])
    with pytest.raises(ValueError, match=r"`ResolutionSchedule\(shares=...\)` needs to know how long the run is\. Set"):
        fit(ResolutionSchedule(), max_epochs=-1)
    no_images = [{"pixels": torch.rand(2, 8), "targets": torch.tensor([0, 1])}] * 4
    with pytest.raises(ValueError, match=r"`ResolutionSchedule` finds no images \[B, C, H, W\].*keys="):
        fit(ResolutionSchedule(), no_images)
    with pytest.raises(ValueError, match=r"`ResolutionSchedule\(keys=...\)` must name a place in the batch, got 'x'"):
        fit(ResolutionSchedule(keys=["x"]))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"scales": []}, r"scales=...\)` must be numbers in \(0, 1\], one for each stage, got \[\]"),
        ({"scales": [0.0, 1.0]}, r"scales=...\)` must be .* got \[0\.0, 1\.0\]"),
        ({"scales": [2]}, r"scales=...\)` must be .* got \[2\]"),
        ({"scales": [math.nan]}, r"scales=...\)` must be .* got \[nan\]"),
        ({"scales": [True]}, r"scales=...\)` must be .* got \[True\]"),
        ({"shares": [0.5, 0.5]}, r"shares=...\)` must be 3 numbers that sum to 1, .* got \[0\.5, 0\.5\]"),
        ({"shares": [0.5, 0.6, 0.1]}, r"shares=...\)` must be 3 numbers that sum to 1"),
        ({"shares": [-0.5, 1.0, 0.5]}, r"shares=...\)` must be 3 numbers that sum to 1"),
        ({"epochs": [1]}, r"epochs=...\)` must be 2 whole numbers in rising order, .* got \[1\]"),
        ({"steps": [5, 2]}, r"steps=...\)` must be 2 whole numbers in rising order, .* got \[5, 2\]"),
        ({"steps": [1.5, 2]}, r"steps=...\)` must be 2 whole numbers in rising order"),
        ({"steps": [1, 2], "epochs": [1, 2]}, r"epochs=...\)` must be left out if `steps` is given"),
        ({"multiple_of": 0}, r"multiple_of=...\)` must be a whole number of at least 1, got 0"),
        ({"method": "nearest"}, r'method=...\)` must be "bilinear" or .*, got \'nearest\''),
        ({"lr_rule": "cubic"}, r'lr_rule=...\)` must be "none", "linear" or "sqrt", got \'cubic\''),
        ({"keys": []}, r"keys=...\)` must name at least one place in the batch, got \[\]"),
    ],
)  # fmt: skip
def test_an_argument_out_of_its_bounds_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=rf"`ResolutionSchedule\({message}"):
        ResolutionSchedule(**arguments)
