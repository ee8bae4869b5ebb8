# SPDX-License-Identifier: Apache-2.0
"""`AdaptiveBatchSize` and `TrainingBudget` in two real processes: they measure and count all, and decide alike."""

from functools import partial

import pytest
import torch
from torch.utils.data import DataLoader

from lightning_stable.callbacks import AdaptiveBatchSize, TrainingBudget, training_budget
from lightning_stable.functional import gradient_noise
from lightning_stable.schedules import ProfileLR
from tests.callbacks.noisy_runs import Noisy, Probe, fit, samples
from tests.distributed.processes import of_both, on_two_ranks

DATA = samples(480)
SETTINGS = {"every_n_steps": 1, "eta": 0.1, "scale_lr": "sqrt"}


def of_rank(rank):
    """Every second batch of four."""
    return DataLoader(DATA.view(-1, 4, 64)[rank::2].reshape(-1, 64), batch_size=4)


class Save(Probe):
    def __init__(self, path):
        super().__init__()
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)
        if trainer.global_step == 7 and self.path is not None and not trainer.fit_loop.epoch_loop._should_accumulate():
            trainer.save_checkpoint(self.path)
            self.batches, self.path = batch_idx + 1, None


def linear(optimizer, trainer):
    total = trainer.estimated_stepping_batches
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1 - step / total)


def run(rank, folder=None, accumulated=1, data=None, ckpt_path=None, **settings):
    callback, save = AdaptiveBatchSize(**{**SETTINGS, **settings}), Save(folder and folder / "mid.ckpt")
    model = Noisy(linear)
    loader = DataLoader(data, batch_size=4) if data is not None else of_rank(rank)
    trainer = fit(
        callback, save, loader=loader, model=model, ckpt_path=ckpt_path, accumulate_grad_batches=accumulated, **SHARED
    )
    return {
        "weight": model.weight.detach(),
        "state": callback.state_dict(),
        "accumulated": save.accumulated,
        "steps": trainer.lr_scheduler_configs[0].scheduler.last_epoch,
        "batch_size": callback.batch_size,
        "batches": getattr(save, "batches", 0),
    }


def resumed(rank, folder):
    whole = run(rank, folder)
    rest = of_rank(rank).dataset.roll(-4 * whole["batches"], 0)
    return {"whole": whole, "rest": run(rank, data=rest, ckpt_path=folder / "mid.ckpt")}


SHARED = {"devices": 2, "strategy": "ddp", "use_distributed_sampler": False}


class Clock(Probe):
    """A batch takes a second by the clock of rank 0, and seven by that of rank 1."""

    now = 0.0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        self.now += 1.0 + 6.0 * trainer.global_rank


def spent(rank, unit, **settings):
    def schedule(optimizer, trainer):
        return ProfileLR(optimizer, "Linear", unit=unit)

    budget, clock, model = TrainingBudget(40, unit=unit), Clock(), Noisy(schedule)
    training_budget._now, before = (lambda: clock.now), training_budget._now
    loader = DataLoader(samples(400), batch_size=3 + 2 * rank)
    try:
        trainer = fit(clock, budget, loader=loader, model=model, max_epochs=-1, **SHARED, **settings)
    finally:
        training_budget._now = before
    position = trainer.lr_scheduler_configs[0].scheduler.position
    return {"used": budget.used, "steps": trainer.global_step, "position": position, "weight": model.weight.detach()}


CHECKS = {
    "one batch a rank": lambda rank, folder: run(rank, max_accumulation=1, smoothing=0.0),
    "two batches a rank": lambda rank, folder: run(rank, accumulated=2),
    "directions": lambda rank, folder: run(rank, test="orthogonality"),
    "resumed": resumed,
    "samples": lambda rank, folder: spent(rank, "samples", accumulate_grad_batches=2),
    "seconds": lambda rank, folder: spent(rank, "seconds"),
}


def check(name, rank, folder):  # a lambda does not come through to another process
    return CHECKS[name](rank, folder)


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    checks = {name: partial(check, name) for name in CHECKS}
    return partial(of_both, on_two_ranks(checks, tmp_path_factory.mktemp("ranks")))


@pytest.mark.parametrize("name", ["one batch a rank", "two batches a rank", "directions"])
def test_ranks_are_alike(ranks, name):
    one, other = ranks(name)
    assert torch.equal(one["weight"], other["weight"])
    assert one["state"] == other["state"]
    assert one["accumulated"] == other["accumulated"]


def test_ranks_with_one_batch_each_are_compared_with_each_other(ranks):
    state = ranks("one batch a rank")[0]["state"]
    last = DATA.view(-1, 4, 64)[-2:].mean(1)  # the last step's, without any average
    noise = gradient_noise(last, samples=4)._replace(along=0.0)
    assert state["sums"] == pytest.approx([1.0, *noise, 4.0], rel=1e-9)
    assert ranks("one batch a rank")[0]["accumulated"] == [1] * 60


def test_all_micro_batches_of_all_ranks_count_as_those_of_one_process_do(ranks):
    four, two = ranks("two batches a rank")[0], ranks("directions")[0]
    callback, probe, model = AdaptiveBatchSize(**SETTINGS, max_accumulation=64), Probe(), Noisy(linear)
    fit(callback, probe, data=DATA, model=model, accumulate_grad_batches=4)
    assert [2 * length for length in four["accumulated"]] == probe.accumulated
    assert four["batch_size"] == callback.batch_size > 16
    assert four["state"]["sums"] == pytest.approx(callback.state_dict()["sums"], rel=1e-9)
    torch.testing.assert_close(four["weight"], model.weight.detach(), rtol=1e-12, atol=1e-12)
    assert four["steps"] == 30
    assert two["steps"] == 60
    assert two["state"]["sums"][2] > 0.0


def test_a_resumed_run_equals_one_that_was_not_interrupted(ranks):
    for result in ranks("resumed"):
        assert max(result["whole"]["accumulated"]) > 1
        assert torch.equal(result["whole"]["weight"], result["rest"]["weight"])
        assert result["whole"]["state"] == result["rest"]["state"]


@pytest.mark.parametrize(("unit", "steps", "used"), [("samples", 3, 48), ("seconds", 40, 40)])
def test_a_budget_is_that_of_all_ranks_and_time_that_of_rank_0(ranks, unit, steps, used):
    one, other = ranks(unit)
    assert torch.equal(one["weight"], other["weight"])
    for result in (one, other):
        assert (result["steps"], result["used"], result["position"]) == (steps, used, used)
