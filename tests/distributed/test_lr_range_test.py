# SPDX-License-Identifier: Apache-2.0
"""`LRRangeTest` in two real processes: both find the same rate, with the mean of their losses, and leave no trace."""

import math
from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_stable.callbacks import LRRangeTest
from tests.distributed.processes import of_both, on_two_ranks
from tests.faulty_runs import assert_same

DATA = torch.randn(32, 4, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
TEST = {"min_lr": 1e-3, "max_lr": 1e2, "steps": 20, "momentum": [0.5]}


class Net(LightningModule):
    """Regression on noise; rank 1 may have a loss of its own."""

    def __init__(self, of_rank_1=1.0):
        super().__init__()
        torch.manual_seed(0)
        self.net = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.BatchNorm1d(8), torch.nn.Linear(8, 1)).double()
        self.of_rank_1 = of_rank_1

    def training_step(self, batch, batch_idx):
        loss = (self.net(batch) - batch[:, :1]).square().mean()
        return loss * self.of_rank_1 if self.global_rank == 1 else loss

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


class Order(Callback):
    def __init__(self):
        self.batches = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batches.append(batch.clone())


def fit(folder, callbacks, model=None, **settings):
    model, order = model or Net(), Order()
    trainer = Trainer(
        **{"accelerator": "cpu", "devices": 2, "strategy": "ddp", "max_epochs": 2, **settings},
        callbacks=[*callbacks, order],
        logger=False,
        default_root_dir=folder,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    torch.manual_seed(trainer.global_rank)
    trainer.fit(model, DataLoader(DATA, batch_size=4, shuffle=True))
    momenta = [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()]
    return {"weights": dict(model.state_dict()), "momenta": momenta, "batches": order.batches, "next": torch.rand(3)}


def traces(rank, folder, **settings):
    test = LRRangeTest(path=str(folder / f"of {rank}"), **TEST)
    plain, tested = fit(folder, [], **settings), fit(folder, [test], **settings)
    files = sorted(path.name for path in folder.glob("of *"))
    losses = test.result.losses, test.result.of_momentum[0.5].losses
    return {"plain": plain, "tested": tested, "files": files, "max_lr": test.result.max_lr, "losses": losses}


def not_finite_on_one(rank, folder):
    try:
        fit(folder, [LRRangeTest(**TEST)], Net(of_rank_1=math.nan))
    except ValueError as error:
        return {"error": str(error)}


def applied(rank, folder):
    test = LRRangeTest(apply="min_lr", **TEST)
    return {**fit(folder, [test]), "min_lr": test.result.min_lr}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    checks = {
        "plain": traces,
        "accumulated": partial(traces, accumulate_grad_batches=2),
        "not finite on one": not_finite_on_one,
        "applied": applied,
    }
    return partial(of_both, on_two_ranks(checks, tmp_path_factory.mktemp("ranks")))


@pytest.mark.parametrize("name", ["plain", "accumulated"])
def test_no_trace_is_left_on_either_rank_and_both_find_the_same(name, ranks):
    one, other = ranks(name)
    for result in (one, other):
        assert_same(result["tested"], result["plain"])
        assert len(result["tested"]["batches"]) == 8
        assert result["files"] == ["of 0"]  # rank zero alone writes
    assert one["max_lr"] == other["max_lr"]
    assert one["losses"] == other["losses"]


def test_a_loss_that_is_not_finite_on_one_rank_is_so_for_both(ranks):
    for result in ranks("not finite on one"):
        assert "the training loss is not finite before the first step" in result["error"]


def test_what_is_applied_is_applied_on_both(ranks):
    one, other = ranks("applied")
    assert one["min_lr"] == other["min_lr"]
    assert_same(one["weights"]["net.0.weight"], other["weights"]["net.0.weight"])
