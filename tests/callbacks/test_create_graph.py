# SPDX-License-Identifier: Apache-2.0
import copy
import gc
import pickle
import warnings
import weakref
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.plugins import MixedPrecision
from lightning.pytorch.tuner import Tuner
from torch.backends import cuda
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.data import DataLoader

from lightning_stable.callbacks import CreateGraph, GradientTransforms
from lightning_stable.guard import Rollback, SkipStep, SpikeGuard
from lightning_stable.monitors import GradientNormMonitor
from lightning_stable.testbeds import CharLM
from lightning_stable.transforms import ZScoreClip
from tests.faulty_runs import ManualNet, Net, assert_same, make_batches, run

AdaHessian = pytest.importorskip("pytorch_optimizer").AdaHessian
DATA = torch.randn(12, 4, generator=torch.Generator().manual_seed(0))
QUIET = {
    "accelerator": "cpu",
    "devices": 1,
    "logger": False,
    "enable_checkpointing": False,
    "enable_progress_bar": False,
    "enable_model_summary": False,
}
make = partial(AdaHessian, lr=0.05, eps=1e-4)


class Model(LightningModule):
    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        self.layers = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Tanh(), torch.nn.Linear(8, 1))
        self.lr = 0.05

    def training_step(self, batch, batch_idx):
        return (self.layers(batch).squeeze(1) - batch.sum(1)).square().mean()

    def configure_optimizers(self):
        return make(self.parameters(), lr=self.lr)


class OwnBackward(Model):
    """Notes what it is called with."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def backward(self, loss, *args, **kwargs):
        self.calls.append(kwargs)
        super().backward(loss, *args, **kwargs)


class At(Callback):
    """Does something in a hook."""

    def __init__(self, hook, action):
        setattr(self, hook, lambda trainer, pl_module, *args: action(pl_module))


def fit(model, *callbacks, **settings):
    trainer = Trainer(callbacks=[CreateGraph(), *callbacks], **{**QUIET, "max_epochs": 1, **settings})
    torch.manual_seed(1)
    trainer.fit(model, DataLoader(DATA, batch_size=2))
    return model


def by_hand(accumulated=1, clip=None):
    model = Model()
    optimizer = model.configure_optimizers()
    torch.manual_seed(1)
    torch.empty((), dtype=torch.int64).random_()  # the seed that a loader draws for its workers
    for index, batch in enumerate(DataLoader(DATA, batch_size=2, generator=torch.Generator())):
        loss = model.training_step(batch, index) / accumulated
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            loss.backward(create_graph=True)
        if (index + 1) % accumulated == 0:
            if clip:
                torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
            optimizer.step()
            optimizer.zero_grad()
    return model


def weights(model):
    return [parameter.detach() for parameter in model.parameters()]


def sdpa_switches():
    return [
        cuda.flash_sdp_enabled(),
        cuda.mem_efficient_sdp_enabled(),
        cuda.cudnn_sdp_enabled(),
        cuda.math_sdp_enabled(),
    ]


def test_a_fit_is_the_loop_by_hand_to_the_last_bit():
    assert_same(weights(fit(Model())), weights(by_hand()))


def test_torchs_warning_of_a_cycle_is_not_shown_and_others_are():
    class Warns(Model):
        def training_step(self, batch, batch_idx):
            warnings.warn("of the module", UserWarning, stacklevel=1)
            return super().training_step(batch, batch_idx)

    torch.set_warn_always(True)  # else once in a process
    try:
        with pytest.warns(UserWarning, match="of the module") as seen:
            fit(Warns())
    finally:
        torch.set_warn_always(False)
    assert not any("create_graph" in str(warning.message) for warning in seen)


def test_accumulated_gradients_are_differentiated_through_all_their_batches():
    assert_same(weights(fit(Model(), accumulate_grad_batches=3)), weights(by_hand(accumulated=3)))


def test_clipping_scales_the_gradient_and_leaves_the_curvature():
    clipped = fit(Model(), gradient_clip_val=0.1)
    assert_same(weights(clipped), weights(by_hand(clip=0.1)))
    assert not torch.equal(weights(clipped)[0], weights(fit(Model()))[0])


def test_without_the_callback_the_optimizer_has_nothing_to_differentiate():
    with pytest.raises(RuntimeError, match="does not require grad"):
        Trainer(max_epochs=1, **QUIET).fit(Model(), DataLoader(DATA))


def test_the_modules_own_backward_is_called_and_restored():
    model = fit(OwnBackward())
    assert model.calls == [{"create_graph": True}] * 6
    assert "backward" not in vars(model)
    assert_same(weights(model), weights(fit(Model())))


def test_a_backward_set_on_the_instance_is_called_and_restored():
    model, calls = Model(), []

    def own(loss, **kwargs):
        calls.append(kwargs)
        loss.backward(**kwargs)

    model.backward = own
    fit(model)
    assert calls == [{"create_graph": True}] * 6
    assert vars(model)["backward"] is own


@pytest.mark.parametrize("hook", ["on_fit_start", "on_train_batch_end", "on_train_end"])
def test_all_is_restored_after_an_exception(hook):
    def fail(_):
        raise OSError("stop")

    model, switches, filters = Model(), sdpa_switches(), list(warnings.filters)
    with pytest.raises(OSError, match="stop"):
        fit(model, At(hook, fail))
    assert "backward" not in vars(model)
    assert sdpa_switches() == switches
    assert warnings.filters == filters
    assert all(parameter.grad is None or parameter.grad.grad_fn is None for parameter in model.parameters())
    assert_same(weights(fit(Model())), weights(by_hand()))


def test_validation_alone_finds_nothing_changed():
    class Validated(Model):
        def validation_step(self, batch, batch_idx):
            seen.append(["backward" in vars(self), sdpa_switches()])

    seen, switches = [], sdpa_switches()
    Trainer(callbacks=[CreateGraph()], **QUIET).validate(Validated(), DataLoader(DATA), verbose=False)
    assert seen == [[False, switches]] * 12


def test_attention_runs_its_math_kernel_during_the_fit_and_others_after():
    class Attention(Model):
        def training_step(self, batch, batch_idx):
            seen.append(sdpa_switches())
            x = self.layers[:2](batch).view(1, 2, 2, 4)
            attended = torch.nn.functional.scaled_dot_product_attention(x, x, x)
            return attended.square().mean() + super().training_step(batch, batch_idx)

    seen = []
    with sdpa_kernel([SDPBackend.FLASH_ATTENTION, SDPBackend.MATH]):
        before = sdpa_switches()
        model = fit(Attention())
        assert sdpa_switches() == before == [True, False, False, True]
    assert seen == [[False, False, False, True]] * 6
    assert all(weight.isfinite().all() for weight in weights(model))


def test_a_transformer_trains():
    class Bytes(CharLM):
        configure_optimizers = Model.configure_optimizers

    model = Bytes(n_layer=1, n_head=2, d_model=8, context=4)
    before = copy.deepcopy(weights(model))
    batch = {"tokens": torch.arange(8).view(2, 4), "targets": torch.arange(1, 9).view(2, 4)}
    trainer = Trainer(callbacks=[CreateGraph()], max_epochs=1, num_sanity_val_steps=0, **QUIET)
    loader = DataLoader([batch] * 3, batch_size=None)
    trainer.fit(model, loader, loader)
    assert all(weight.isfinite().all() for weight in weights(model))
    assert not any(torch.equal(a, b) for a, b in zip(weights(model), before, strict=True))


@pytest.mark.parametrize(("accumulated", "kept"), [(1, [0] * 6), (3, [1, 2, 0, 1, 2, 0])])
def test_no_graph_outlives_the_optimizer_step_and_the_gradients_do(accumulated, kept):
    class Watched(Model):
        def training_step(self, batch, batch_idx):
            hidden = self.layers[:2](batch)
            alive.append(weakref.ref(hidden))  # saved in the graph
            return self.layers[2](hidden).square().mean()

        def configure_optimizers(self):
            return make(self.parameters(), update_period=4)  # in between, nothing uses the graph up

    def look(_):
        counts.append(sum(hidden() is not None for hidden in alive))

    alive, counts = [], []
    gc.disable()  # a cycle would wait for it
    try:
        model = fit(Watched(), At("on_train_batch_end", look), accumulate_grad_batches=accumulated)
    finally:
        gc.enable()
    assert counts == kept
    assert all(parameter.grad.abs().sum() > 0 and not parameter.grad.requires_grad for parameter in model.parameters())


def test_precision_of_bfloat16_works():
    model = fit(Model(), precision="bf16-mixed")
    assert all(weight.isfinite().all() for weight in weights(model))
    assert not torch.equal(weights(model)[0], weights(Model())[0])


def test_a_module_in_mid_run_can_be_copied_and_pickled():
    def check(model):
        for twin in (copy.deepcopy(model), pickle.loads(pickle.dumps(model))):
            assert twin.backward.func.__self__ is twin
            twins.append(twin)

    twins = []
    fit(Model(), At("on_train_batch_start", check))
    assert len(twins) == 12


def test_a_learning_rate_finder_has_it_too(tmp_path):
    trainer = Trainer(callbacks=[CreateGraph()], max_epochs=1, default_root_dir=tmp_path, **QUIET)
    found = Tuner(trainer).lr_find(Model(), DataLoader(DATA, batch_size=2), num_training=5)
    assert len(found.results["loss"]) == 5


def test_it_works_with_those_that_read_or_change_gradients():
    beside = [GradientNormMonitor(), GradientTransforms([ZScoreClip(z=0.5, warmup_steps=2)])]
    model = fit(Model(), *beside)
    assert all(weight.isfinite().all() for weight in weights(model))


@pytest.mark.parametrize(("response", "every"), [(SkipStep, 50), (partial(Rollback, mode="replay"), 2)])
def test_the_guard_undoes_a_bad_step_to_the_last_bit_random_signs_included(response, every):
    guard = SpikeGuard(ladder=[response(times=5)], snapshot_every=every)
    model = partial(Net, optimizer=make)
    spoilt = run(make_batches(14, bad=(4, 9)), [guard, CreateGraph()], model=model, epochs=1)
    good = [batch for index, batch in enumerate(make_batches(14)) if index not in (4, 9)]
    clean = run(good, [CreateGraph()], model=model, epochs=1)
    assert len(guard.incidents) == 2
    assert_same([spoilt.weights, spoilt.optimizers], [clean.weights, clean.optimizers])
    assert torch.equal(spoilt.random[0], clean.random[0])


# What is refused


def test_several_processes_are_refused():
    with pytest.raises(RuntimeError, match=r"`CreateGraph\(\)` works in one process, got DDPStrategy with 1: .*Use"):
        CreateGraph().setup(Trainer(strategy="ddp", **QUIET), Model(), "fit")


def test_a_gradient_scaler_is_refused():
    plugin = MixedPrecision("16-mixed", "cpu", torch.amp.GradScaler("cpu"))
    with pytest.raises(RuntimeError, match=r'cannot work with a GradScaler.*got precision "16-mixed".*"bf16-mixed"'):
        fit(Model(), plugins=plugin)


def test_manual_optimization_is_refused():
    with pytest.raises(RuntimeError, match=r"got `ManualNet.automatic_optimization = False`.*manual_backward"):
        run(make_batches(2), [CreateGraph()], model=ManualNet)


def test_a_backward_that_does_not_take_the_argument_is_refused():
    class Strict(Model):
        def backward(self, loss):
            loss.backward()

    model = Strict()
    with pytest.raises(RuntimeError, match=r"calls `Strict.backward` with `create_graph=True`, which it does not take"):
        fit(model)
    assert "backward" not in vars(model)


def test_a_second_one_is_refused():
    with pytest.raises(RuntimeError, match=r"must hold one `CreateGraph` only, got 2"):
        fit(Model(), CreateGraph())
