# SPDX-License-Identifier: Apache-2.0
"""Lightning's own pieces of a step, put together once more: with the same gradients, and seen by nobody."""

from contextlib import contextmanager

import pytest
import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.plugins.precision import MixedPrecision

from lightning_stable._lightning.repeated_step import run_again
from lightning_stable._lightning.trainer import gradient_scaler
from tests.faulty_runs import Net, assert_same, make_batches, run


def test_the_loop_and_the_module_still_have_what_a_step_is_made_of():
    epoch_loop = Trainer(accelerator="cpu", logger=False, enable_checkpointing=False).fit_loop.epoch_loop
    assert callable(epoch_loop._build_kwargs)
    assert callable(epoch_loop.automatic_optimization._make_closure)
    assert callable(Net()._on_before_batch_transfer)


class Plain(Net):
    """Without anything that a second try would find changed."""

    def __init__(self):
        super().__init__()
        self.layers = torch.nn.Linear(8, 1)


class Repeats(Callback):
    """Runs each batch again before the optimizer moves, as the first of the callbacks."""

    def __init__(self):
        self.losses, self.again, self.norms, self.norms_again = [], [], [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch

    def on_before_backward(self, trainer, pl_module, loss):
        self.losses.append(loss.detach())

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        gradients = [parameter.grad for parameter in pl_module.parameters()]
        for parameter in pl_module.parameters():
            parameter.grad = None
        with torch.no_grad():
            for parameter, before in zip(pl_module.parameters(), self.weights, strict=True):
                parameter.copy_(before)
        scaler = gradient_scaler(trainer)
        before = trainer.callbacks, trainer.loggers, trainer.profiler, vars(pl_module).copy()
        self.again += run_again(trainer, [(batch, batch_idx)])
        assert before[:3] == (trainer.callbacks, trainer.loggers, trainer.profiler)
        assert before[3].keys() == vars(pl_module).keys()
        assert gradient_scaler(trainer) is scaler
        assert_same([parameter.grad for parameter in pl_module.parameters()], gradients)

    def on_before_zero_grad(self, trainer, pl_module, optimizer):
        self.weights = [parameter.detach().clone() for parameter in pl_module.parameters()]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true", "64-true", "16-mixed"])
def test_losses_and_gradients_are_those_of_the_first_try(precision, tmp_path):
    arguments = {"precision": precision}
    if precision == "16-mixed":
        arguments = {"plugins": [MixedPrecision(precision, "cpu", scaler=torch.amp.GradScaler("cpu", init_scale=64.0))]}
    repeats = Repeats()
    run(make_batches(5), [repeats], model=Plain, logger=CSVLogger(tmp_path), epochs=1, limit_val_batches=0, **arguments)
    assert len(repeats.again) == 5
    assert_same(repeats.again, repeats.losses)


def test_callbacks_and_self_log_are_left_out():
    calls = []

    class Notes(Callback):
        def on_after_backward(self, trainer, pl_module):
            calls.append(trainer.global_step)

    class Again(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            accumulated = dict(vars(trainer.fit_loop.epoch_loop._results["training_step.train_loss"]))
            run_again(trainer, [(batch, batch_idx)])
            assert dict(vars(trainer.fit_loop.epoch_loop._results["training_step.train_loss"])) == accumulated

    run(make_batches(3), [Notes(), Again()], epochs=1)
    assert calls == [0, 1, 2]


def test_whoever_makes_a_batch_other_than_it_is_may_do_so_again():
    class Doubles(Callback):
        entered = 0

        @contextmanager
        def around_repeated_batch(self, trainer, pl_module, batch):
            self.entered += 1
            batch["y"] *= 2
            yield
            batch["y"] /= 2

    class Again(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            before = batch["y"].clone()
            run_again(trainer, [(batch, batch_idx), (batch, batch_idx)])
            assert torch.equal(batch["y"], before)

    doubles = Doubles()
    run(make_batches(3), [doubles, Again()], epochs=1)
    assert doubles.entered == 6


def test_an_error_leaves_the_trainer_as_it_was():
    class Again(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            before = trainer.callbacks, trainer.loggers, trainer.profiler, sorted(vars(pl_module))
            with pytest.raises(KeyError):
                run_again(trainer, [({}, batch_idx)])
            assert before == (trainer.callbacks, trainer.loggers, trainer.profiler, sorted(vars(pl_module)))

    run(make_batches(2), [Again()], epochs=1)
