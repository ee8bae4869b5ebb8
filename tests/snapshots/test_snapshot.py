# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.snapshots.snapshot import Snapshot
from lightning_stable.snapshots.transfer import Transfer
from tests.faulty_runs import Net, assert_same, make_batches, run

OPTIMIZERS = {
    "adamw": lambda p: torch.optim.AdamW(p, lr=0.01, amsgrad=True),
    "capturable": lambda p: torch.optim.AdamW(p, lr=torch.tensor(0.01)),
    "sgd": lambda p: torch.optim.SGD(p, lr=0.01, momentum=0.9),
    "rmsprop": lambda p: torch.optim.RMSprop(p, lr=0.01, centered=True, momentum=0.5),
    "nadam": lambda p: torch.optim.NAdam(p, lr=0.01),
    "adafactor": lambda p: torch.optim.Adafactor(p, lr=0.01),
}


class Snap(Callback):
    """Takes a snapshot before batch `at` and restores it after batch 4, twice."""

    def __init__(self, at):
        self.at = at
        self.pointers = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.snapshot = Snapshot(trainer, pl_module, self, Transfer("host"))
        if batch_idx == self.at:
            self.snapshot.capture()
            self.before = self.look(trainer, pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == 4:
            addresses = [p.data_ptr() for p in pl_module.parameters()]
            for _ in range(2):
                self.snapshot.restore()
                assert_same(self.look(trainer, pl_module), self.before)
                with torch.no_grad():
                    for parameter in pl_module.parameters():
                        parameter.fill_(float("nan"))
            self.snapshot.restore()
            assert addresses == [p.data_ptr() for p in pl_module.parameters()]  # in place

    def look(self, trainer, module):
        return {
            "weights": [p.detach().clone() for p in module.parameters()],
            "optimizer": copy.deepcopy(trainer.optimizers[0].state_dict()["state"]),
            "lr": [copy.deepcopy(group["lr"]) for group in trainer.optimizers[0].param_groups],
            "global_step": trainer.global_step,
        }


@pytest.mark.parametrize("at", [0, 2])  # 0: before the optimizer has any state
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_weights_and_optimizer_come_back_in_place_and_more_than_once(optimizer, at):
    run(make_batches(6), [Snap(at)], model=lambda: Net(OPTIMIZERS[optimizer]), epochs=2)


def addresses_of(snapshot):
    """Where its buffers lie."""
    buffers = [buffer for optimizer in snapshot._optimizers for buffer in optimizer._buffers.values()]
    return [copy.data_ptr() for copy in (*snapshot._parameter_copies, *buffers)]


def test_the_buffers_are_allocated_once():
    addresses = []

    class Often(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                self.snapshot = Snapshot(trainer, pl_module, self, Transfer("host"))
            if batch_idx == 1:
                self.snapshot.allocate_optimizer_state()
                addresses.append(addresses_of(self.snapshot))
            self.snapshot.capture()
            addresses.append(addresses_of(self.snapshot))

    run(make_batches(5), [Often()], epochs=1)
    before, *after = addresses
    assert len(after[0]) > len(before)
    assert all(one == after[0] for one in after)


def test_state_that_was_thrown_away_since_comes_back():
    class Clear(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            optimizer = trainer.optimizers[0]
            if batch_idx == 3:
                snapshot = Snapshot(trainer, pl_module, self, Transfer("device"))
                snapshot.capture()
                before = copy.deepcopy(optimizer.state_dict()["state"])
                optimizer.state.clear()
                snapshot.restore()
                assert_same(optimizer.state_dict()["state"], before)

    run(make_batches(5), [Clear()], epochs=1)


@pytest.mark.parametrize("at", [0, 2])
@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_an_exchange_brings_the_model_back_and_the_run_goes_on(optimizer, at, tmp_path):
    class Exchange(Snap):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if batch_idx != 4:
                return
            steps, random = trainer.global_step, torch.get_rng_state()
            torch.save(self.snapshot.state_dict(), tmp_path / "snapshot.pt")
            other = Snapshot(trainer, pl_module, self, Transfer("host"))
            other.load_state_dict(torch.load(tmp_path / "snapshot.pt", weights_only=True))
            for snapshot in (self.snapshot, other):
                with torch.no_grad():
                    for parameter in pl_module.parameters():
                        parameter.fill_(float("nan"))
                snapshot.exchange()
                assert_same({**self.look(trainer, pl_module), "global_step": 0}, {**self.before, "global_step": 0})
                assert trainer.global_step == steps
                assert torch.equal(torch.get_rng_state(), random)

    run(make_batches(6), [Exchange(at)], model=lambda: Net(OPTIMIZERS[optimizer]), epochs=1)


def test_a_state_of_another_model_is_refused():
    class Refused(Snap):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            state = self.snapshot.state_dict()
            for spoilt, what in (
                ({**state, "parameters": state["parameters"][:-1]}, "its parameters are not"),
                ({**state, "others": [torch.zeros(1)]}, "its modules of callbacks are not"),
                ({**state, "around": {**state["around"], "buffers": []}}, "its buffers are not"),
            ):
                with pytest.raises(ValueError, match=what):
                    self.snapshot.load_state_dict(spoilt)

    run(make_batches(1), [Refused(0)], epochs=1)
