# SPDX-License-Identifier: Apache-2.0
import copy
import itertools
from types import SimpleNamespace

import pytest
import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins.precision import MixedPrecision
from lightning.pytorch.strategies import FSDPStrategy
from torch.nn.functional import cross_entropy as imported_by_name
from torch.utils.data import DataLoader, TensorDataset
from torchmetrics import MeanMetric

from lightning_stable.callbacks.gauss_newton_bartlett import GaussNewtonBartlett
from lightning_stable.optim import StepGate
from lightning_stable.optim.sophia import SophiaG

BATCH, FEATURES, CLASSES = 4, 10, 5
_generator = torch.Generator().manual_seed(3)
INPUTS = torch.randn(80, FEATURES, generator=_generator)
LABELS = torch.randint(CLASSES, (80,), generator=_generator)
QUIET = dict.fromkeys(("logger", "enable_checkpointing", "enable_progress_bar", "enable_model_summary"), False)


class Deaf(SophiaG):
    """Is measured for, and does not care."""

    def update_hessian(self, gradients=None, batch_size=None):
        self.heard = getattr(self, "heard", 0) + 1


class Heard(SophiaG):
    """Writes down what it is told, after how many steps, and at which weights."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.told, self.at, self.weights = [], [], []

    def update_hessian(self, gradients=None, batch_size=None):
        self.told.append(([None if g is None else g.clone() for g in gradients], batch_size))
        self.at.append(self.param_groups[0]["steps_taken"])
        self.weights.append(self.param_groups[0]["params"][0].detach().clone())
        super().update_hessian(gradients, batch_size)


class Model(LightningModule):
    """Has everything that an extra pass could disturb."""

    loss = staticmethod(F.cross_entropy)

    def __init__(self, optimizer=SophiaG, **settings):
        super().__init__()
        torch.manual_seed(0)
        self.body = torch.nn.Sequential(
            torch.nn.Linear(FEATURES, 8), torch.nn.BatchNorm1d(8), torch.nn.Dropout(0.3), torch.nn.Linear(8, CLASSES)
        )
        self.register_buffer("calls", torch.zeros(()), persistent=False)
        self.register_buffer("last", torch.zeros(CLASSES))
        self.mean = MeanMetric(nan_strategy="ignore")
        self.kind, self.settings = optimizer, {"lr": 0.01, **settings}

    def training_step(self, batch, batch_idx):
        self.calls += 1
        logits = self.body(batch[0].to(self.body[0].weight.dtype))
        self.last = logits.detach().float().mean(0)
        loss = self.loss(logits, batch[1])
        self.mean(loss.detach())
        self.log("mean", self.mean, on_epoch=True)
        self.log_dict({"loss": loss.detach()}, on_step=True, on_epoch=True)
        return loss

    def configure_optimizers(self):
        return self.kind(self.parameters(), **self.settings)


class Simple(Model):
    """One linear layer in float64, whose derivatives can be written down."""

    def __init__(self, **settings):
        super().__init__(**{"optimizer": Heard, **settings})
        self.body = torch.nn.Sequential(torch.nn.Linear(FEATURES, CLASSES, bias=False, dtype=torch.float64))


def fit(model, callbacks, max_steps=12, ckpt_path=None, first=0, targets=LABELS, inputs=INPUTS, **settings):
    settings = {"accelerator": "cpu", "devices": 1, **QUIET, **settings}
    trainer = Trainer(max_steps=max_steps, callbacks=callbacks, **settings)
    data = TensorDataset(inputs.roll(-first * BATCH, 0), targets.roll(-first * BATCH, 0))
    trainer.fit(model, DataLoader(data, batch_size=BATCH), ckpt_path=ckpt_path)
    return trainer


def everything(model, trainer):
    optimizer = trainer.optimizers[0]
    states = [value for p in model.parameters() for name, value in sorted(optimizer.state[p].items())]
    logged = [trainer.callback_metrics[key] for key in ("mean", "loss_step", "loss_epoch")]
    metric = [model.mean.mean_value, model.mean.weight]
    return [*model.parameters(), *model.buffers(), *states, *logged, *metric, torch.get_rng_state()]


def exact_gauss_newton(weight, inputs):
    """diag of (1/N) sum_n J_n^T (diag(p_n) - p_n p_n^T) J_n for logits W x_n, entry by entry."""
    diagonal = torch.zeros_like(weight)
    for x in inputs.to(weight.dtype):
        p = torch.softmax(weight @ x, 0)
        for c, d in itertools.product(*map(range, weight.shape)):
            diagonal[c, d] += p[c] * (1 - p[c]) * x[d] ** 2 / len(inputs)
    return diagonal


class Many(Simple):
    """The same small model very often: each copy draws labels of its own."""

    copies = 40000

    def __init__(self):
        super().__init__()
        self.weight = torch.nn.Parameter(self.body[0].weight.detach().repeat(self.copies, 1, 1))

    def training_step(self, batch, batch_idx):
        logits = torch.einsum("kcd,nd->nkc", self.weight, batch[0].double()).flatten(0, 1)
        return F.cross_entropy(logits, batch[1].repeat_interleave(self.copies))


def test_the_estimate_is_the_gauss_newton_diagonal_in_expectation():
    model = Many()
    optimizer = fit(model, [GaussNewtonBartlett()], max_steps=1).optimizers[0]
    # h = (1 - beta2) B g_hat^2 with B = copies * N; one copy alone has B = N
    estimate = optimizer.state[model.weight]["hessian"].mean(0) / 0.01 * model.copies
    exact = exact_gauss_newton(model.body[0].weight.detach(), INPUTS[:BATCH])
    torch.testing.assert_close(estimate, exact, rtol=0.04, atol=0.0)


def assert_drawn(gradient, weight, x):
    """g_hat = (p - y_hat)^T x / B for some labels y_hat: only with the right weights, inputs and B are they 0 or 1."""
    x = x.double()
    labels = (torch.softmax(x @ weight.T, 1).T @ x - len(x) * gradient) @ torch.linalg.pinv(x)
    torch.testing.assert_close(labels, F.one_hot(labels.argmax(0), CLASSES).T.double(), rtol=0.0, atol=1e-9)


def test_a_measurement_is_of_the_weights_and_the_batch_of_the_step_that_is_the_first_to_use_it():
    model = Simple(betas=(0.9, 0.5))
    optimizer = fit(model, [GaussNewtonBartlett(every_n_steps=4)]).optimizers[0]
    assert optimizer.at == [0, 4, 8]  # steps taken before it: it waits for none of them
    h = 0.0
    for ((gradient,), size), weight, step in zip(optimizer.told, optimizer.weights, optimizer.at, strict=True):
        assert size == BATCH
        assert_drawn(gradient, weight, INPUTS[step * BATCH : (step + 1) * BATCH])
        h = 0.5 * h + 0.5 * size * gradient**2
    torch.testing.assert_close(optimizer.state[model.body[0].weight]["hessian"], h, rtol=1e-12, atol=0.0)


@pytest.mark.parametrize("every", [1, 3, 10**9])
@pytest.mark.parametrize("settings", [{}, {"accumulate_grad_batches": 2, "max_steps": 8}], ids=str)
def test_training_does_not_notice_the_extra_passes(every, settings):
    """Weights, moments, BatchNorm, other buffers, metrics, logged values and random numbers: bit for bit."""
    runs = []
    for callbacks in ([], [GaussNewtonBartlett(every)]):
        model = Model(Deaf)
        trainer = fit(model, callbacks, **settings)
        runs.append(everything(model, trainer))
    assert trainer.optimizers[0].heard == -(-trainer.global_step // every)
    assert all(torch.equal(a, b) for a, b in zip(*runs, strict=True))
    assert not {"log", "log_dict"} & vars(model).keys()


@pytest.mark.parametrize("saved_at", [4, 5, 9])
def test_resuming_equals_an_uninterrupted_run(tmp_path, saved_at):
    straight = Model()
    fit(straight, [GaussNewtonBartlett(4)], max_steps=14)
    trainer = fit(Model(), [GaussNewtonBartlett(4)], max_steps=saved_at)
    trainer.save_checkpoint(tmp_path / "mid.ckpt")
    random_state = torch.get_rng_state()  # a Lightning checkpoint has none
    resumed, callback = Model(), GaussNewtonBartlett(4)

    class Remember(Callback):
        def on_train_start(self, trainer, pl_module):
            torch.set_rng_state(random_state)

    fit(resumed, [callback, Remember()], max_steps=14, ckpt_path=tmp_path / "mid.ckpt", first=saved_at)
    assert callback.state_dict() == {"steps_taken": 14}
    for name, value in resumed.state_dict().items():
        assert torch.equal(value, straight.state_dict()[name]), name


def test_a_vetoed_step_is_not_measured_and_does_not_count():
    class Veto(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            StepGate.attach(optimizer, user="veto").veto = trainer.fit_loop.batch_idx in (0, 1, 4)

    callback = GaussNewtonBartlett(4)
    trainer = fit(Simple(), [callback, Veto()])
    assert trainer.optimizers[0].at == [0, 4, 8]
    assert callback.state_dict() == {"steps_taken": 9}


def test_a_batch_of_nan_leaves_the_curvature_alone():
    inputs = INPUTS.clone()
    inputs[BATCH : 2 * BATCH] = torch.nan
    model = Simple()
    trainer = fit(model, [GaussNewtonBartlett(1)], max_steps=2, inputs=inputs)
    (first, size), (second, _) = trainer.optimizers[0].told
    assert second[0].isnan().all()
    hessian = trainer.optimizers[0].state[model.body[0].weight]["hessian"]
    torch.testing.assert_close(hessian, 0.01 * size * first[0] ** 2)


def told(model, **settings):
    """What the optimizer hears in the first step."""
    return fit(model, [GaussNewtonBartlett()], max_steps=1, **settings).optimizers[0].told[0]


@pytest.mark.parametrize(
    "loss",
    [
        torch.nn.CrossEntropyLoss(),
        imported_by_name,
        lambda logits, y: F.cross_entropy(input=logits, target=y, reduction="sum") / 7 + logits.square().mean(),
        lambda logits, y: F.cross_entropy(logits, y, torch.ones(CLASSES).double() / 3, label_smoothing=0.2),
        lambda logits, y: F.cross_entropy(logits, F.one_hot(y, CLASSES).double()),
        lambda logits, y: F.nll_loss(logits.log_softmax(1), y),
        lambda logits, y: F.cross_entropy(logits, y) + F.cross_entropy(logits.detach(), y),
    ],
    ids=["module", "by name", "sum and more", "weights", "soft", "nll", "no gradient"],
)
def test_however_cross_entropy_is_called_the_measurement_is_the_same(loss):
    model = Simple()
    model.loss = loss
    torch.testing.assert_close(told(model), told(Simple()), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(
    "loss",
    [
        lambda logits, y: F.cross_entropy(logits.t()[None], y[None]),
        lambda logits, y: sum(F.cross_entropy(row, label) for row, label in zip(logits, y, strict=True)),
    ],
    ids=["class axis", "single samples"],
)
def test_all_labels_of_a_step_count_as_one_mean(loss):
    model = Simple()
    model.loss = loss
    (gradient,), _ = told(model)
    assert_drawn(gradient, Simple().body[0].weight.detach(), INPUTS[:BATCH])


@pytest.mark.parametrize("ignore_index", [-100, 2])
def test_ignored_positions_have_no_label(ignore_index):
    targets = LABELS.clone().clamp(max=1)
    targets[1:BATCH] = ignore_index
    model = Simple()
    model.loss = lambda logits, y: F.cross_entropy(logits, y, ignore_index=ignore_index)
    (gradient,), size = told(model, targets=targets)
    assert size == 1
    assert_drawn(gradient, Simple().body[0].weight.detach(), INPUTS[:1])


def test_a_batch_without_any_label_changes_nothing():
    trainer = fit(Simple(), [GaussNewtonBartlett()], max_steps=1, targets=torch.full_like(LABELS, -100))
    assert trainer.optimizers[0].told == []


class Own(Simple):
    def training_step(self, batch, batch_idx):
        self.optimizers().step()

    def sampled_label_loss(self, batch, generator):
        logits = self.body(batch[0].double())
        labels = torch.bernoulli(logits.sigmoid().detach(), generator=generator)
        return F.binary_cross_entropy_with_logits(logits, labels), labels.numel()


def test_a_module_may_bring_its_own_loss_and_must_where_it_steps_the_optimizer_itself(monkeypatch):
    monkeypatch.setattr(Own, "automatic_optimization", False)
    optimizer = fit(Own(), [GaussNewtonBartlett(5)]).optimizers[0]
    assert optimizer.at == [0, 5, 10]
    (gradient,), size = optimizer.told[0]
    assert size == BATCH * CLASSES
    assert gradient.abs().sum() > 0
    monkeypatch.delattr(Own, "sampled_label_loss")
    with pytest.raises(RuntimeError, match=r"cannot run `training_step` once more.*Define `sampled_label_loss"):
        fit(Own(), [GaussNewtonBartlett()])


def test_parameters_that_are_frozen_unused_or_in_other_groups_are_no_trouble():
    class Groups(Simple):
        def __init__(self):
            super().__init__()
            self.frozen = torch.nn.Parameter(torch.ones(2), requires_grad=False)
            self.unused = torch.nn.Parameter(torch.ones(3))

        def configure_optimizers(self):
            return Heard([{"params": [self.frozen, self.unused]}, {"params": self.body.parameters(), "lr": 0.1}])

    gradients, _ = told(Groups())
    assert [gradient is None for gradient in gradients] == [True, True, False]


@pytest.mark.parametrize("precision", ["bf16-mixed", "bf16-true", "16-mixed"])
def test_every_precision_measures_without_a_scale(precision):
    scaler = torch.amp.GradScaler("cpu", init_scale=2.0**10)
    scaled = {"plugins": [MixedPrecision(precision, "cpu", scaler=scaler)]} if precision == "16-mixed" else None
    settings = scaled or {"precision": precision}
    measured, expected = Simple(), Simple()
    for model in (measured, expected):
        model.body[0].weight = torch.nn.Parameter(torch.zeros(CLASSES, FEATURES))
    (gradient,), size = told(measured, **settings)
    assert size == BATCH
    torch.testing.assert_close(gradient.float(), told(expected)[0][0], rtol=0.02, atol=0.02)


def test_compiled_code_is_seen_through():
    class Compiled(Simple):
        def training_step(self, batch, batch_idx):
            return self.both(batch[0].double(), batch[1])

    model = Compiled()
    model.both = torch.compile(lambda x, y: F.cross_entropy(model.body(x), y), backend="eager")
    torch.testing.assert_close(told(model), told(Simple()), rtol=0.0, atol=0.0)


def test_the_win_rate_is_logged_at_measured_steps():
    rates = []

    class Read(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rates.append(trainer.callback_metrics.pop("stability/sophia/win_rate", None))

    fit(Model(rho=1.0), [GaussNewtonBartlett(5), Read()])
    assert [step for step, rate in enumerate(rates) if rate is not None] == [0, 5, 10]
    assert 0.0 < rates[10] < 1.0


def test_it_leaves_the_optimizer_as_it_was_found_and_draws_by_its_seed():
    callback = GaussNewtonBartlett(seed=1)
    optimizer = fit(Simple(), [callback]).optimizers[0]
    assert "step" not in vars(optimizer)
    assert copy.deepcopy(callback).state_dict() == {"steps_taken": 12}
    assert not torch.equal(optimizer.told[0][0][0], told(Simple())[0][0])


class Shares(Callback):
    """Looks at the ranks from within."""

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.inputs = trainer.strategy.all_gather(batch[0]).flatten(0, 1)

    def on_train_end(self, trainer, pl_module):
        told = trainer.optimizers[0].told
        assert [size for _, size in told] == [2 * BATCH] * 3
        assert_drawn(told[0][0][0], Simple().body[0].weight.detach(), self.inputs)
        for tensor in (told[-1][0][0], pl_module.body[0].weight.detach()):
            assert torch.equal(*trainer.strategy.all_gather(tensor))


@pytest.mark.slow
def test_all_ranks_take_one_estimate_over_all_their_batches():
    fit(Simple(), [GaussNewtonBartlett(4), Shares()], devices=2, strategy="ddp_spawn", max_steps=10)


def test_sharded_parameters_are_refused():
    trainer = SimpleNamespace(strategy=FSDPStrategy.__new__(FSDPStrategy))
    with pytest.raises(RuntimeError, match=r"needs whole parameters, which FSDPStrategy shards\. Use `Trainer\(str"):
        GaussNewtonBartlett().setup(trainer, Model(), "fit")


class Adam(Model):
    def configure_optimizers(self):
        return torch.optim.AdamW(self.parameters())


class Iterator(Model):
    def training_step(self, dataloader_iter):
        """Never runs."""


class Squares(Model):
    def loss(self, logits, target):
        return logits.square().mean()


@pytest.mark.filterwarnings("ignore:You are using the `dataloader_iter` step flavor")
@pytest.mark.parametrize(
    ("kind", "message"),
    [
        (Adam, r"for one optimizer, a `SophiaG`; got AdamW\. Return `lightning_stable\.optim\.SophiaG\(self\.param"),
        (Iterator, r"needs the batch a second time.*Use `training_step\(self, batch, batch_idx\)`"),
        (Squares, r"saw no logits: `Squares\.training_step` called neither `cross_entropy`.*Define `sampled_label"),
    ],
)
def test_what_cannot_be_measured_is_refused_with_a_remedy(kind, message):
    with pytest.raises(RuntimeError, match=message):
        fit(kind(), [GaussNewtonBartlett()])


def test_a_period_below_one_step_is_refused():
    with pytest.raises(ValueError, match=r"`GaussNewtonBartlett\(every_n_steps=\.\.\.\)` must be at least 1, got 0"):
        GaussNewtonBartlett(every_n_steps=0)
