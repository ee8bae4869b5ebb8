# SPDX-License-Identifier: Apache-2.0
"""The edge it finds on quadratics is 2 / lambda_max; it runs once, and says what it has found, wherever it can."""

import bisect
import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision
from torch.utils.data import DataLoader

from lightning_stable.callbacks import LRRangeTest, PopulationBasedTraining
from lightning_stable.callbacks.range_test.curve import grid_of
from lightning_stable.guard import SpikeGuard
from lightning_stable.optim import SAM
from tests.callbacks.range_test.ranged_runs import DATA, SHORT, Net, Quadratic, fit, result_of, trainer_with

# The edge

SPECTRA = {
    "one direction": torch.ones(1),
    "all alike": torch.ones(20),
    "over six decades": torch.logspace(-6, 0, 20),
    "one sharp, many flat": torch.cat([torch.full((19,), 1e-4), torch.ones(1)]),
}
GRIDS = {
    "default": {},
    "coarse": {"min_lr": 1e-4, "max_lr": 100.0, "steps": 30},
    "fine": {"min_lr": 2e-2, "max_lr": 2.0, "steps": 60},
    "linear": {"min_lr": 0.02, "max_lr": 2.0, "steps": 30, "spacing": "linear"},
}


def bins_off(largest, sharpest, arguments):
    callback = LRRangeTest(**arguments)
    grid = grid_of(callback.min_lr, callback.max_lr, callback.steps, callback.spacing)
    return grid.index(largest) - (bisect.bisect_right(grid, 2 / sharpest) - 1)


@pytest.mark.parametrize(
    ("grid", "spectrum"),
    [*(("default", name) for name in SPECTRA), *((name, "over six decades") for name in GRIDS if name != "default")],
)
def test_on_a_quadratic_the_edge_is_two_over_the_sharpest_curvature(grid, spectrum):
    generator = torch.Generator().manual_seed(len(spectrum))
    for sharpest, size in ((1.7, 1.0), (20.0, 1e4)):
        eigenvalues = SPECTRA[spectrum].double() * sharpest
        start = size * torch.randn(len(eigenvalues), generator=generator, dtype=torch.float64)
        result = result_of(Quadratic(eigenvalues, start), **GRIDS[grid])
        assert result.diverged
        assert bins_off(result.max_lr, sharpest, GRIDS[grid]) in (0, 1)
        assert result.min_lr == result.max_lr / 10


@pytest.mark.parametrize("share", [1.0, 1e-2, 1e-4])
def test_the_edge_is_found_if_little_of_the_loss_is_along_the_sharpest_direction(share):
    eigenvalues = torch.tensor([1e-5, 0.3, 5.0], dtype=torch.float64)
    start = torch.tensor([1.0, 1.0, share], dtype=torch.float64).sqrt() / eigenvalues.sqrt()
    result = result_of(Quadratic(eigenvalues, start))
    assert bins_off(result.max_lr, 5.0, {}) in (0, 1)


def test_a_loss_that_goes_below_zero_has_the_same_edge():
    class Shifted(Quadratic):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) - 50.0

    eigenvalues = torch.logspace(-2, 0, 5, dtype=torch.float64) * 4
    result = result_of(Shifted(eigenvalues, torch.ones(5, dtype=torch.float64)))
    assert bins_off(result.max_lr, 4.0, {}) in (0, 1, 2)  # 2 % of the loss are more than all of the quadratic


def test_where_nothing_diverges_the_end_of_the_grid_is_recommended_and_said_to_be_that(capsys):
    result = result_of(Quadratic(torch.ones(2), torch.ones(2)), min_lr=1e-4, max_lr=1e-2, steps=10)
    assert (result.max_lr, result.diverged, len(result.rates)) == (1e-2, False, 10)
    assert "the end of the grid; try larger ones" in capsys.readouterr().out


def test_the_sweep_stops_at_divergence():
    result = result_of(Quadratic(10 * torch.ones(2), torch.ones(2)))
    assert len(result.rates) == len(result.losses) == len(result.smoothed) < 100
    assert result.rates[-1] > result.max_lr


def test_a_loss_that_is_not_finite_is_divergence():
    result = result_of(Net(loss=lambda loss: loss if loss < 3 else loss * math.nan), **SHORT)
    assert result.diverged


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize(
    ("loss", "message"),
    [
        (lambda loss: loss * math.nan, "not finite before the first step"),
        (lambda loss: None, "`training_step` returns None"),
        (lambda loss: -loss, None),
    ],
)
def test_a_loss_that_cannot_be_tested_is_an_error_and_leaves_the_net_as_it_was(loss, message):
    model, callback = Net(loss=loss), LRRangeTest(**SHORT)
    before = [parameter.detach().clone() for parameter in model.parameters()]
    if message is None:  # a loss that falls without end has no edge, and is no error
        fit(model, callback)
        return
    with pytest.raises(ValueError, match=message):
        fit(model, callback)
    assert all(torch.equal(*pair) for pair in zip(before, model.parameters(), strict=True))


def test_a_smallest_rate_that_is_too_large_is_an_error():
    with pytest.raises(ValueError, match=r"`LRRangeTest\(min_lr=10\)` found no rate that holds"):
        result_of(Quadratic(torch.ones(2), torch.ones(2)), min_lr=10.0, max_lr=100.0, steps=5)


# When it runs


class Counts(Callback):
    """Counts batches, and what a test would be seen by."""

    def __init__(self):
        self.batches = self.backwards = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches += 1

    def on_before_backward(self, trainer, pl_module, loss):
        self.backwards += 1


def test_it_runs_once_in_a_fit_and_no_callback_sees_it():
    callback, counts, steps = LRRangeTest(**SHORT), Counts(), []
    model = Net(loss=lambda loss: steps.append(1) or loss)
    fit(model, counts, callback, max_steps=7)
    assert (counts.batches, counts.backwards) == (7, 7)
    assert len(steps) == 7 + callback.result.steps
    first = callback.result
    fit(Net(), callback)
    assert callback.result is not first
    assert callback.result == first


def test_a_resumed_run_is_not_tested_again_and_says_so(tmp_path, caplog):
    fit(Net(), LRRangeTest(**SHORT)).save_checkpoint(tmp_path / "mid.ckpt")
    callback = LRRangeTest(**SHORT)
    with caplog.at_level("INFO", "lightning.pytorch"):
        fit(Net(), callback, max_steps=4, ckpt_path=tmp_path / "mid.ckpt")
    assert callback.result is None
    assert "LRRangeTest: not run, as this fit goes on from an earlier step" in caplog.text


def test_a_second_fit_of_the_same_trainer_goes_on_and_is_not_tested():
    callback = LRRangeTest(**SHORT)
    trainer = trainer_with(callback)
    model = Net()
    trainer.fit(model, DataLoader(DATA, batch_size=8))
    callback.result = None
    trainer.fit_loop.epoch_loop.max_steps = 4
    trainer.fit(model, DataLoader(DATA, batch_size=8))
    assert trainer.global_step == 4
    assert callback.result is None


class Validated(Net):
    def validation_step(self, batch, batch_idx):
        self.log("val_loss", self.training_step(batch, batch_idx))


def test_sanity_checks_validation_and_fast_dev_run_are_left_alone():
    callback = LRRangeTest(**SHORT)
    trainer = trainer_with(callback, fast_dev_run=True)
    trainer.fit(Validated(), DataLoader(DATA), DataLoader(DATA))
    trainer_with(callback).validate(Validated(), DataLoader(DATA), verbose=False)
    assert callback.result is None
    seen = []

    class Look(Callback):
        def on_validation_start(self, trainer, pl_module):
            seen.append((trainer.sanity_checking, callback.result is None))

    trainer = trainer_with(callback, Look(), num_sanity_val_steps=1)
    trainer.fit(Validated(), DataLoader(DATA), DataLoader(DATA))
    assert seen[0] == (True, True)


@pytest.mark.parametrize(
    "settings",
    [
        {"precision": "bf16-mixed"},
        {"accumulate_grad_batches": 3},
        {"gradient_clip_val": 0.1},
        {"gradient_clip_val": 0.1, "gradient_clip_algorithm": "value"},
        {"overfit_batches": 1},
        {"limit_train_batches": 2},
    ],
    ids=str,
)
def test_it_works_with_the_trainer_s_settings(settings):
    callback = LRRangeTest(**SHORT)
    fit(Net(), callback, **settings)
    assert callback.result.diverged
    assert 0.01 < callback.result.max_lr < 500


def test_clipping_makes_larger_rates_hold():
    largest = []
    for clip in (None, 1e-3):
        callback = LRRangeTest(**SHORT)
        fit(Net(), callback, gradient_clip_val=clip)
        largest.append(callback.result.max_lr)
    assert largest[1] > 10 * largest[0]


@pytest.mark.parametrize("fused", [False, True])
def test_overflows_of_half_precision_are_left_to_the_scaler(fused):
    callback = LRRangeTest(**SHORT)
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**40)  # at which half precision overflows
    plugin = MixedPrecision("16-mixed", "cpu", scaler)
    fit(Net(torch.optim.AdamW, fused=fused), callback, plugins=[plugin], max_steps=1)
    plain = result_of(Net(torch.optim.AdamW, fused=fused), **SHORT)
    assert callback.result.diverged
    assert callback.result.losses[:4] == pytest.approx(plain.losses[:4], rel=0.02)
    assert scaler.get_scale() == 2.0**39  # the one step of the run has overflowed, and no other


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, SAM])
def test_optimizers_that_run_their_closure_again_are_tested_too(kind):
    result = result_of(Net(kind), **SHORT)
    assert 0.01 < result.max_lr <= 1000


def test_groups_keep_the_ratio_of_their_rates():
    first, last = [], []

    class Watched(torch.optim.SGD):
        def step(self, closure=None):
            first.append(self.param_groups[0]["lr"])
            last.append(self.param_groups[1]["lr"])
            return super().step(closure)

    class Groups(Net):
        def configure_optimizers(self):
            inner, _, outer = self.net
            return Watched([{"params": inner.parameters(), "lr": 0.01}, {"params": outer.parameters(), "lr": 0.1}])

    result = result_of(Groups(), **SHORT)
    assert first == pytest.approx([rate / 10 for rate in last])
    assert last[: len(result.rates)] == pytest.approx(result.rates)
    assert last[-1] == 0.1


@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2}], ids=str)
@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_batch_that_nothing_is_learned_from_is_no_divergence(settings):
    class Picky(Net):
        def training_step(self, batch, batch_idx):
            return None if batch_idx % 5 == 3 else super().training_step(batch, batch_idx)

    callback = LRRangeTest(**SHORT)
    fit(Picky(), callback, **settings)
    assert 0.05 < callback.result.max_lr < 100
    assert all(loss > 0.01 for loss in callback.result.losses)


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
@pytest.mark.parametrize("left_out", [{0}, {0, 1, 2}, {2, 7}])
def test_batches_that_nothing_is_learned_from_are_as_if_they_were_not_there(left_out):
    class Picky(Net):
        def training_step(self, batch, batch_idx):
            is_left_out = any(torch.equal(batch, rows[index]) for index in left_out)
            return None if is_left_out else super().training_step(batch, batch_idx)

    rows = torch.randn(10, 8, 4, generator=torch.Generator().manual_seed(5))
    found = []
    for model, kept in ((Picky(), range(10)), (Net(), sorted({*range(10)} - left_out))):
        callback = LRRangeTest(**SHORT)
        fit(model, callback, data=torch.cat([rows[index] for index in kept]), max_steps=1)
        found.append(callback.result)
    assert found[0] == found[1]


@pytest.mark.filterwarnings("ignore:`training_step` returned `None`")
def test_a_loss_that_is_left_out_as_it_is_not_finite_is_divergence():
    class Careful(Net):
        def training_step(self, batch, batch_idx):
            loss = super().training_step(batch, batch_idx)
            return loss if loss < 100 else None

    careful, plain = result_of(Careful(), **SHORT), result_of(Net(), **SHORT)
    assert (careful.max_lr, careful.diverged) == (plain.max_lr, plain.diverged)


# What is refused


class Manual(Net):
    def __init__(self):
        super().__init__()
        self.automatic_optimization = False


class TakesAnIterator(Net):
    def training_step(self, dataloader_iter):
        return super().training_step(next(dataloader_iter)[0], 0)


class WithoutRates(Net):
    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.0)


@pytest.mark.filterwarnings("ignore:.*`dataloader_iter`")
@pytest.mark.parametrize(
    ("model", "callbacks", "message"),
    [
        (Manual(), [LRRangeTest()], "is for automatic optimization, got `Manual.automatic_optimization = False`"),
        (TakesAnIterator(), [LRRangeTest()], "this one takes a `dataloader_iter` and fetches for itself"),
        (WithoutRates(), [LRRangeTest()], r"a learning rate above 0, and the groups of `SGD` have \[0.0\]"),
        (Net(), [LRRangeTest(), LRRangeTest(apply=None)], "must hold one `LRRangeTest` only"),
        (
            Net(),
            [Counts(), SpikeGuard(), LRRangeTest(apply="max_lr")],
            r"must come before `SpikeGuard`.*Use `callbacks=\[LRRangeTest\(...\), SpikeGuard\(...\)\]`",
        ),
        (Net(), [PopulationBasedTraining(), LRRangeTest(apply="max_lr")], "must come before `PopulationBasedTraining`"),
    ],
    ids=["manual", "iterator", "rates", "twice", "order", "members"],
)
def test_what_cannot_be_tested_is_refused_with_a_reason(model, callbacks, message):
    trainer = trainer_with()
    trainer.callbacks = callbacks
    with pytest.raises(ValueError, match=message):
        trainer.fit(model, DataLoader(DATA))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"min_lr": 0.0}, r"`LRRangeTest\(min_lr=\.\.\.\)` must be a finite number above 0, got 0.0"),
        ({"min_lr": math.nan}, r"min_lr=\.\.\.\)` must be a finite number above 0, got nan"),
        ({"min_lr": True}, r"min_lr=\.\.\.\)` must be a finite number above 0, got True"),
        ({"max_lr": 1e-7}, r"max_lr=\.\.\.\)` must be a finite number above `min_lr` \(1e-07\), got 1e-07"),
        ({"max_lr": math.inf}, r"max_lr=\.\.\.\)` must be a finite number .*, got inf"),
        ({"steps": 2}, r"steps=\.\.\.\)` must be a whole number of at least 3, got 2"),
        ({"steps": 10.0}, r"steps=\.\.\.\)` must be a whole number of at least 3, got 10.0"),
        ({"spacing": "log"}, r'spacing=\.\.\.\)` must be "exponential" or "linear", got \'log\''),
        ({"momentum": []}, r"momentum=\.\.\.\)` must be None or a list of different values, got \[\]"),
        ({"momentum": [0.9, 0.9]}, r"momentum=\.\.\.\)` must be None or a list of different values"),
        ({"momentum": [1.0]}, r"momentum=\.\.\.\)` must have values that are at least 0 and below 1, got 1.0"),
        ({"momentum": 0.9}, r"momentum=\.\.\.\)` must be None or a list of different values, got 0.9"),
        ({"weight_decay": [-1.0]}, r"weight_decay=\.\.\.\)` must have values that are finite and at least 0, got -1.0"),
        ({"weight_decay": [math.nan]}, r"values that are finite and at least 0, got nan"),
        ({"diverge_factor": 1.0}, r"diverge_factor=\.\.\.\)` must be a finite number above 1, got 1.0"),
        ({"smoothing": 1.0}, r"smoothing=\.\.\.\)` must be at least 0 and below 1, got 1.0"),
        ({"apply": "largest"}, r'apply=\.\.\.\)` must be None, "max_lr", "min_lr" or "steepest_lr", got \'largest\''),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        LRRangeTest(**arguments)
