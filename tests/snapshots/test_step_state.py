# SPDX-License-Identifier: Apache-2.0
import torch
from lightning.pytorch import Callback

from lightning_stable._lightning import results
from lightning_stable.snapshots.step_state import StepState
from tests.faulty_runs import Net, assert_same, make_batches, run


class Spoil(Callback):
    """Captures before a batch, lets everything be spoilt, restores, and compares."""

    def __init__(self, look):
        self.look = look
        self.compared = 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 3:
            self.state = StepState(trainer, pl_module, self)
            self.state.capture()
            self.before = self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 3:
            for _ in range(2):  # a captured state can be restored more than once
                self.state.restore()
                assert_same(self.look(trainer, pl_module), self.before)
                self.compared += 1


def look(trainer, module):
    results = trainer.fit_loop.epoch_loop._results
    return {
        "buffers": [buffer.clone() for buffer in module.buffers()],
        "metric": {name: getattr(module.mean_loss, name).clone() for name in ("mean_value", "weight")},
        "updates": module.mean_loss._update_count,
        "logged": {key: (m.value.clone(), m.cumulated_batch_size.clone()) for key, m in results.items() if m.is_tensor},
        "global_step": trainer.global_step,
        "schedule": {
            k: v for k, v in trainer.lr_scheduler_configs[0].scheduler.state_dict().items() if k != "lr_lambdas"
        },
        "groups": [{k: v for k, v in g.items() if k != "params"} for g in trainer.optimizers[0].param_groups],
        "random": torch.get_rng_state(),
        "should_stop": trainer.should_stop,
    }


def test_everything_around_the_weights_comes_back():
    spoil = Spoil(look)
    run(make_batches(6), [spoil], epochs=1)
    assert spoil.compared == 2


class Rebinds(Net):
    """Binds a new tensor to a buffer's name in every step."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        self.seen = self.seen + 1
        return loss


def test_a_buffer_that_is_bound_anew_comes_back():
    spoil = Spoil(look)
    run(make_batches(6), [spoil], model=Rebinds, epochs=1)
    assert spoil.compared == 2


def test_an_exchange_leaves_what_is_the_runs():
    class Exchange(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 1:
                self.state = StepState(trainer, pl_module, self)
                self.state.capture()
                self.mean = pl_module.layers[1].running_mean.clone()
                self.rate = pl_module.optimizers().param_groups[0]["lr"]

        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx == 3:
                steps, random = trainer.global_step, torch.get_rng_state()
                logged = results.logged_results(trainer)
                trainer.should_stop = True
                self.state.load_state_dict(self.state.state_dict())
                self.state.exchange()
                assert torch.equal(pl_module.layers[1].running_mean, self.mean)
                assert pl_module.optimizers().param_groups[0]["lr"] == self.rate
                assert trainer.lr_scheduler_configs[0].scheduler.last_epoch == 1
                assert (trainer.global_step, trainer.should_stop) == (steps, True)
                assert torch.equal(torch.get_rng_state(), random)
                assert_same(results.logged_results(trainer), logged)

    run(make_batches(6), [Exchange()], epochs=1)
