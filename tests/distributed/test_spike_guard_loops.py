# SPDX-License-Identifier: Apache-2.0
"""`SpikeGuard` in two real processes, in longer loops: windows, epochs, two optimizers by hand, escalation, resumes."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.data import DataLoader

from lightning_stable._lightning import progress
from lightning_stable.guard import Halt, Rollback, SkipStep, SpikeGuard
from tests.distributed.processes import Net, assert_same, batch, of_both, on_two_ranks, whole
from tests.distributed.test_spike_guard import SaveAt, detectors

BATCHES, EPOCHS, BAD = 11, 2, (4, 10)  # with windows of two the last one of an epoch is shorter, and bad
RESPONSES = {
    "skip": lambda: SkipStep(times=99),
    "replay": lambda: Rollback("replay", times=99),
    "escalate": lambda: Rollback(times=99, escalate=2),
}


class Automatic(LightningModule):
    """The data is a function of an index and the rank; on rank 1 it is bad now and then."""

    def __init__(self, bad):
        super().__init__()
        self.net, self.bad, self.used = Net(), bad, []

    def loss(self, index):
        x, y, z = batch(100 + index, self.global_rank, self.net, faults=False)
        x = x * torch.nan if self.global_rank == 1 and index in self.bad else x
        return self.net(x + 0.01 * torch.randn_like(x), y, z)

    def training_step(self, index, batch_idx):
        return self.loss(int(index))

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1.0 + 0.1 * step))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class ByHand(Automatic):
    """Body and head have an optimizer each, stepped one after the other."""

    def __init__(self, bad):
        super().__init__(bad)
        self.automatic_optimization = False

    def configure_optimizers(self):
        body, rest = self.net.body.parameters(), [*self.net.head.parameters(), self.net.gain]
        return torch.optim.SGD(body, lr=0.01, momentum=0.9), torch.optim.Adam(rest, lr=0.01)

    def training_step(self, index, batch_idx):
        loss = self.loss(int(index))
        for optimizer in self.optimizers():
            optimizer.zero_grad()
        self.manual_backward(loss)
        for optimizer in self.optimizers():
            optimizer.step()


def loader(epochs, epoch):
    """Indices in an order that every epoch draws anew, unless it is given."""
    if epochs is None:
        return DataLoader(torch.arange(BATCHES), batch_size=1, shuffle=True)
    return DataLoader(torch.tensor(epochs[epoch]), batch_size=1)


def states(trainer, module):
    found = {name: whole(value) for name, value in module.named_parameters()}
    for number, optimizer in enumerate(trainer.optimizers):
        for index, state in enumerate(optimizer.state.values()):
            found |= {f"{number}.{index}.{name}": whole(value) for name, value in state.items()}
    return found


class WhatWasKept(Callback):
    """The batches of every epoch that were trained on and not undone; behind the guard."""

    def __init__(self):
        self.kept, self.window, self.steps = [[]], [], 0

    def on_train_epoch_start(self, trainer, pl_module):
        if trainer.current_epoch:
            self.kept.append([])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.window.append(int(batch))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if pl_module.automatic_optimization and progress.is_accumulating(trainer):
            return
        per_step = max(1, len(trainer.optimizers))
        steps, self.steps = trainer.global_step // per_step - self.steps, trainer.global_step // per_step
        if steps > 0:
            self.kept[-1].append(self.window)
        elif steps < 0:
            del self.kept[-1][steps:]
        self.window = []


class SaveAtWindow(SaveAt):
    """Not in the middle of one."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if not (pl_module.automatic_optimization and progress.is_accumulating(trainer)):
            super().on_train_batch_end(trainer, pl_module, outputs, batch, batch_idx)


def fit(kind, folder, bad=(), response=None, epochs=None, seed=0, rank=0, ckpt_path=None, callbacks=(), **settings):
    torch.manual_seed(10 * seed + rank)
    ladder = [Halt()] if response is None else [RESPONSES[response](), Halt()]
    guard = SpikeGuard(watch=detectors(), ladder=ladder, snapshot_every=2, forgive_after=None)
    kept = WhatWasKept()
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        use_distributed_sampler=False,
        max_epochs=EPOCHS,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        reload_dataloaders_every_n_epochs=1,
        default_root_dir=folder,
        callbacks=[guard, kept, *callbacks],
        **settings,
    )
    module = kind(bad)
    module.train_dataloader = lambda: loader(epochs, trainer.current_epoch)
    trainer.fit(module, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return {
        "run": states(trainer, module),
        "random": torch.get_rng_state(),
        "incidents": [(each.epoch, each.batches, each.rank, each.batches_passed_over) for each in guard.incidents],
        "kept": [[index for window in epoch for index in window] for epoch in kept.kept],
        "steps": trainer.global_step,
    }


def undone(kind, response, accumulate, rank, folder):
    """A run with bad batches, and one whose loaders never held what was left out."""
    settings = {"rank": rank, **({"accumulate_grad_batches": accumulate} if accumulate > 1 else {})}
    everything = [list(range(BATCHES))] * EPOCHS
    found = fit(kind, folder, BAD, response, everything, **settings)
    return {"guarded": found, "clean": fit(kind, folder, epochs=found["kept"], **settings)}


def resumed(kind, accumulate, at, rank, folder):
    """Broken off in the second epoch, in an order that each rank draws for itself."""
    settings = {"rank": rank, **({"accumulate_grad_batches": accumulate} if accumulate > 1 else {})}
    path = folder / "last.ckpt"
    straight = fit(kind, folder, BAD, "skip", callbacks=[SaveAtWindow(at, path)], **settings)
    return {"straight": straight, "again": fit(kind, folder, BAD, "skip", seed=7, ckpt_path=path, **settings)}


KINDS = {"windows": (Automatic, 2), "by hand": (ByHand, 1)}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    checks = {}
    for name, (kind, accumulate) in KINDS.items():
        for response in RESPONSES:
            checks[f"{name}, {response}"] = partial(undone, kind, response, accumulate)
        checks[f"{name}, resumed"] = partial(resumed, kind, accumulate, 6 if name == "windows" else 26)
    return partial(of_both, on_two_ranks(checks, tmp_path_factory.mktemp("ranks")))


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("name", KINDS)
def test_over_two_epochs_no_rank_remembers_what_was_left_out(name, response, ranks):
    one, other = ranks(f"{name}, {response}")
    for result in (one, other):
        found, clean = result["guarded"], result["clean"]
        assert {epoch for epoch, *_ in found["incidents"]} == {0, 1}
        assert not set(BAD) & {index for epoch in found["kept"] for index in epoch}
        assert_same(found["run"], clean["run"])
        assert torch.equal(found["random"], clean["random"])
        assert (found["steps"], found["kept"]) == (clean["steps"], clean["kept"])
        assert clean["incidents"] == []
    assert one["guarded"]["incidents"] == other["guarded"]["incidents"]
    assert {rank for _, _, rank, _ in one["guarded"]["incidents"]} == {1}
    assert_same(one["guarded"]["run"], other["guarded"]["run"])


@pytest.mark.parametrize("name", KINDS)
def test_a_run_that_resumes_in_the_second_epoch_is_the_same_on_both_ranks(name, ranks):
    for result in ranks(f"{name}, resumed"):
        assert_same(result["again"]["run"], result["straight"]["run"])
        assert torch.equal(result["again"]["random"], result["straight"]["random"])
        assert result["again"]["incidents"] == result["straight"]["incidents"]
