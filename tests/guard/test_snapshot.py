# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.guard.snapshot import Snapshot
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
            self.snapshot = Snapshot(trainer, pl_module, self)
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


def test_the_buffers_are_allocated_once():
    pointers = []

    class Twice(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 0:
                self.snapshot = Snapshot(trainer, pl_module, self)
            self.snapshot.capture()
            saved = self.snapshot._optimizer_states[0]
            states = [v.data_ptr() for entry in saved.values() for v in entry.values() if isinstance(v, torch.Tensor)]
            pointers.append(([c.data_ptr() for c in self.snapshot._copies], states))

    run(make_batches(5), [Twice()], epochs=1)
    assert pointers[1] == pointers[2] == pointers[4]
    assert pointers[1][1]
