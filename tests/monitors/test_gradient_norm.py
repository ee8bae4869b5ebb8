# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch
from lightning.pytorch import Callback
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_stable.monitors import GradientNormMonitor
from tests.faulty_runs import ManualNet, Net, make_batches, run
from tests.monitors.attentive_runs import Remembers


class Reference(Callback):
    """The same norm, number by number, in float64; and the learning rate."""

    def __init__(self):
        self.norms, self.lrs = [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        numbers = [x for p in pl_module.parameters() if p.grad is not None for x in p.grad.flatten().tolist()]
        self.norms.append(math.sqrt(sum(x * x for x in numbers)))
        self.lrs.append(optimizer.param_groups[0]["lr"])


def logged(logger, key):
    return [sent[key] for _, sent in sorted(logger.sent.items()) if key in sent]


@pytest.mark.parametrize(
    "settings",
    [
        {},
        {"accumulate_grad_batches": 2},
        {"gradient_clip_val": 1e-3},
        {"precision": "64-true"},
        {"model": ManualNet},
        {"model": lambda: Net(optimizer=lambda p: torch.optim.LBFGS(p, max_iter=3))},
    ],
    ids=["plain", "accumulation", "clipping", "double", "manual", "lbfgs"],
)
def test_it_is_the_norm_of_all_gradients_before_clipping(settings):
    logger, reference = Remembers(), Reference()
    batches = make_batches(4)
    if settings.get("precision") == "64-true":
        batches = [{key: value.double() for key, value in batch.items()} for batch in batches]
        settings = {**settings, "limit_val_batches": 0}
    outcome = run(batches, [GradientNormMonitor(), reference], epochs=1, logger=logger, **settings)
    first = slice(None, None, len(reference.norms) // len(logger.sent))  # LBFGS evaluates several times a step
    assert logged(logger, "stability/grad_norm") == pytest.approx(reference.norms[first], rel=1e-5)
    assert logged(logger, "stability/lr") == pytest.approx(reference.lrs[first])
    assert outcome.trainer.callback_metrics["stability/grad_norm"] == pytest.approx(reference.norms[first][-1])


@pytest.mark.parametrize("fused", [False, True])
@pytest.mark.filterwarnings("ignore:.*lr_scheduler.step.*before.*optimizer.step.*")
def test_the_scale_of_a_gradient_scaler_is_taken_out(fused):
    def norms(scale):
        logger = Remembers()
        scaler = torch.amp.GradScaler("cpu", init_scale=scale)
        run(
            make_batches(3),
            [GradientNormMonitor()],
            model=lambda: Net(optimizer=lambda p: torch.optim.SGD(p, lr=1e-3, fused=fused)),
            epochs=1,
            logger=logger,
            plugins=[MixedPrecision("16-mixed", "cpu", scaler=scaler)],
        )
        return logged(logger, "stability/grad_norm")

    assert norms(64.0) == pytest.approx(norms(1.0), rel=0.02)


def test_what_is_not_finite_is_logged_as_it_is():
    logger = Remembers()
    run(make_batches(3, bad=[1]), [GradientNormMonitor()], epochs=1, logger=logger)
    first, second, third = logged(logger, "stability/grad_norm")
    assert math.isfinite(first)
    assert math.isnan(second)
    assert math.isnan(third)


def test_gradients_too_large_for_half_precision_have_a_norm():
    class Half(Net):
        def on_before_optimizer_step(self, optimizer):
            pass

    class Large(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            for p in pl_module.parameters():
                p.grad = torch.full_like(p, 3e4)

    logger = Remembers()
    batches = [{key: value.half() for key, value in batch.items()} for batch in make_batches(1)]
    settings = {"precision": "16-true", "limit_val_batches": 0}
    outcome = run(batches, [Large(), GradientNormMonitor()], model=Half, epochs=1, logger=logger, **settings)
    count = sum(weight.numel() for weight in outcome.weights.values())
    assert logged(logger, "stability/grad_norm") == pytest.approx([3e4 * math.sqrt(count)], rel=1e-3)


class Several(Net):
    """Three optimizers: one as usual, one for an embedding with sparse gradients, one that never gets a gradient."""

    def __init__(self):
        super().__init__()
        self.automatic_optimization = False
        self.table = torch.nn.Embedding(4, 8, sparse=True)
        self.unused = torch.nn.Parameter(torch.zeros(2))

    def training_step(self, batch, batch_idx):
        loss = self(batch["x"] + self.table(torch.tensor([1, 1, 2, 3]))).square().mean()
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()

    def configure_optimizers(self):
        return [
            torch.optim.SGD(self.layers.parameters(), lr=0.1),
            torch.optim.SparseAdam(self.table.parameters(), lr=0.2),
            torch.optim.SGD([self.unused], lr=0.3),
        ]


def test_every_optimizer_has_its_own_keys_and_one_without_gradients_has_no_norm():
    logger, expected = Remembers(), []

    class Table(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            if optimizer is trainer.optimizers[1]:
                expected.append(pl_module.table.weight.grad.to_dense().norm().item())

    run(make_batches(2), [GradientNormMonitor(), Table()], model=Several, epochs=1, logger=logger)
    keys = {"stability/grad_norm", "stability/lr", "stability/grad_norm/1", "stability/lr/1", "stability/lr/2"}
    assert all(sent.keys() == keys for sent in logger.sent.values())
    assert logged(logger, "stability/grad_norm/1") == pytest.approx(expected)
    assert logged(logger, "stability/lr/2") == pytest.approx([0.3, 0.3])


def test_a_learning_rate_in_a_tensor_is_copied():
    logger = Remembers()
    model = lambda: Net(optimizer=lambda p: torch.optim.SGD(p, lr=torch.tensor(0.5)))  # noqa: E731
    run(make_batches(2), [GradientNormMonitor()], model=model, epochs=1, logger=logger)
    assert logged(logger, "stability/lr") == pytest.approx([0.5, 0.5 / 1.1])


def test_nothing_is_taken_on_the_steps_between():
    monitor, taken = GradientNormMonitor(every_n_steps=3), []

    class Looks(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            taken.append(bool(monitor._measured))

    run(make_batches(5), [monitor, Looks()], epochs=1)
    assert taken == [True, False, False, True, False]
