# SPDX-License-Identifier: Apache-2.0
import copy

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.callbacks.population.members import Members
from tests.callbacks.populations import Net, fit, weights
from tests.faulty_runs import assert_same


def look(trainer, module):
    optimizer, schedule = trainer.optimizers[0], trainer.lr_scheduler_configs[0].scheduler
    state = {name: value for name, value in schedule.state_dict().items() if name != "lr_lambdas"}
    return copy.deepcopy((weights(module), optimizer.state_dict(), state))


class Swaps(Callback):
    """Keeps the model of step 2 as member 1, and puts it back after step 5."""

    def __init__(self, path=None):
        self.path = path

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 0:
            self.members = Members(trainer, pl_module, self, 2, None)
        if batch_idx == 2:
            self.members.keep(1)
            self.expected = look(trainer, pl_module)
        if batch_idx == 5:
            self.swap(trainer, pl_module)

    def swap(self, trainer, pl_module):
        self.members.keep(0)
        if self.path is not None:  # through a file, into new buffers
            torch.save(self.members.state_dict(without=0), self.path)
            self.members = Members(trainer, pl_module, self, 2, None)
            self.members.load_state_dict(torch.load(self.path, weights_only=True))
        now, steps, random = look(trainer, pl_module), trainer.global_step, torch.get_rng_state()
        logged = float(trainer.callback_metrics["train_loss"])
        self.members.put_in(1)
        assert_same(look(trainer, pl_module), self.expected)
        assert (trainer.global_step, float(trainer.callback_metrics["train_loss"])) == (steps, logged)
        assert torch.equal(torch.get_rng_state(), random)
        self.members.put_in(0)
        assert_same(look(trainer, pl_module), now)


@pytest.mark.parametrize("kind", [torch.optim.AdamW, torch.optim.SGD, torch.optim.NAdam, torch.optim.Adafactor])
@pytest.mark.parametrize("through_a_file", [False, True])
def test_a_member_comes_back_whole_and_the_run_goes_on(kind, through_a_file, tmp_path):
    fit(Swaps(tmp_path / "members.pt" if through_a_file else None), Net(dropout=0.2, kind=kind), max_steps=7)


def test_more_than_they_may_take_is_refused_before_it_is_taken():
    class Asks(Callback):
        def on_train_start(self, trainer, pl_module):
            with pytest.raises(
                ValueError, match=r"allows 10 bytes, and a `population` of 5 needs about 6,180, 1,236 each"
            ):
                Members(trainer, pl_module, self, 5, max_bytes=10)

    fit(Asks(), Net(), max_steps=1)
