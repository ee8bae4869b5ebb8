# SPDX-License-Identifier: Apache-2.0
"""`SpikeGuard` in two real processes: what only one rank has seen is undone on both, bit for bit."""

from functools import partial

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch.distributed.fsdp import fully_shard
from torch.utils.data import DataLoader

from lightning_stable.detectors import Above, MedianDeviation
from lightning_stable.guard import Halt, Rollback, SkipStep, SpikeGuard, TrainingHalted
from tests.distributed.fitted_net import strategy_for
from tests.distributed.processes import Net, assert_same, batch, everything, of_both, on_two_ranks

BATCHES, SNAPSHOT_EVERY = 24, 4
NAN, HUGE, TWICE = 9, 18, (20, 21)
BAD = (NAN, HUGE, *TWICE)
COUNTS = ("non_finite_losses", "non_finite_gradients")  # logged last at the last spike
LADDERS = {
    "skip": lambda: [SkipStep(times=9), Halt()],
    "replay": lambda: [Rollback("replay", times=9), Halt()],
    "rollback": lambda: [Rollback("skip", times=9), Halt()],
}


class Guarded(LightningModule):
    """The small network on data that is a function of an index and the rank, with noise from the global generator."""

    def __init__(self, bad):
        super().__init__()
        self.net, self.bad = Net(), bad

    def configure_model(self):
        if self.device_mesh is not None:
            fully_shard(self.net, mesh=self.device_mesh["data_parallel"])

    def training_step(self, index, batch_idx):
        x, y, z = batch(100 + int(index), self.global_rank, self.net, faults=False)
        if self.global_rank == 1 and int(index) in self.bad:
            x, y = (x * torch.nan, y) if int(index) in (NAN, *TWICE) else (x, y * 1e3)
        return self.net(x + 0.01 * torch.randn_like(x), y, z)

    def configure_optimizers(self):
        optimizer = torch.optim.AdamW(self.parameters(), lr=0.02)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 / (1.0 + 0.1 * step))
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class SaveAt(Callback):
    def __init__(self, step, path):
        self.step, self.path = step, path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == self.step:
            trainer.save_checkpoint(self.path)


def detectors():
    return {
        "loss": MedianDeviation(warmup=4, min_rise=20.0),
        "grad_norm": MedianDeviation(warmup=4, min_ratio=20.0),
    }


def fit(wrap, rank, indices, bad=(), ladder=None, seed=0, ckpt_path=None, callbacks=(), **settings):
    torch.manual_seed(10 * seed + rank)
    warn = {"loss": Above(0.0)}
    guard = SpikeGuard(watch=detectors(), ladder=ladder, snapshot_every=SNAPSHOT_EVERY, warn=warn)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=strategy_for(wrap),
        use_distributed_sampler=False,  # both ranks see all indices, and make of each what is theirs
        max_epochs=1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[guard, *callbacks],
        **settings,
    )
    module = Guarded(bad)
    loader = DataLoader(torch.tensor(indices), batch_size=1)
    trainer.fit(module, loader, ckpt_path=ckpt_path, weights_only=None if ckpt_path is None else True)
    return {
        "run": everything(module, trainer.optimizers[0]),
        "random": torch.get_rng_state(),
        "incidents": [(each.batches, each.signal, each.rank, each.response) for each in guard.incidents],
        "warnings": [(each.batches, each.value) for each in guard.warnings],
        "notes": [each.notes for each in guard.incidents],
        "counts": {key: float(trainer.callback_metrics.get(f"stability/{key}", -1)) for key in COUNTS},
        "rolled back": [each.steps_rolled_back for each in guard.incidents],
        "steps": trainer.global_step,
        "lr": trainer.optimizers[0].param_groups[0]["lr"],
    }


def guarded(wrap, name, rank, folder):
    """The guarded run, and one that never saw what it has left out: bad batches, and what was trained on in vain."""
    found = fit(wrap, rank, range(BATCHES), BAD, LADDERS[name](), default_root_dir=folder)
    left = list(range(BATCHES))
    for index, steps in zip(BAD, found["rolled back"], strict=True):
        at = left.index(index)
        del left[at - (0 if name == "replay" else steps) : at + 1]
    return {"guarded": found, "clean": fit(wrap, rank, left, default_root_dir=folder), "left": left}


def halted(wrap, rank, folder):
    try:
        fit(wrap, rank, range(BATCHES), (NAN, *TWICE), [SkipStep(times=1), Halt()], default_root_dir=folder)
    except TrainingHalted as halt:
        return {"report": halt.report}
    return {"report": "it was not"}


def resumed(wrap, rank, folder):
    path = folder / "last.ckpt"
    straight = fit(wrap, rank, range(BATCHES), callbacks=[SaveAt(13, path)], default_root_dir=folder)
    again = fit(wrap, rank, range(BATCHES), seed=7, ckpt_path=path, default_root_dir=folder)
    return {"straight": straight, "again": again}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    checks = {}
    for wrap in ("copies", "shards"):
        for name in LADDERS:
            checks[f"{wrap}, {name}"] = partial(guarded, wrap, name)
        checks[f"{wrap}, halted"] = partial(halted, wrap)
        checks[f"{wrap}, resumed"] = partial(resumed, wrap)
    return partial(of_both, on_two_ranks(checks, tmp_path_factory.mktemp("ranks")))


@pytest.mark.parametrize("wrap", ["copies", "shards"])
@pytest.mark.parametrize("name", LADDERS)
def test_a_fault_on_one_rank_is_as_if_no_rank_had_ever_seen_the_batch(wrap, name, ranks):
    for result in ranks(f"{wrap}, {name}"):
        found, clean = result["guarded"], result["clean"]
        assert_same(found["run"], clean["run"])
        assert torch.equal(found["random"], clean["random"])
        assert (found["steps"], found["lr"]) == (clean["steps"], clean["lr"])
        assert clean["incidents"] == []
        assert (len(result["left"]) == BATCHES - len(BAD)) == (name != "rollback")


@pytest.mark.parametrize("wrap", ["copies", "shards"])
@pytest.mark.parametrize("name", LADDERS)
def test_all_ranks_decide_alike_and_name_the_rank(wrap, name, ranks):
    one, other = (result["guarded"] for result in ranks(f"{wrap}, {name}"))
    assert one["incidents"] == other["incidents"]
    assert [batches for batches, *_ in one["incidents"]] == [[index] for index in BAD]
    assert {rank for _, _, rank, _ in one["incidents"]} == {1}
    assert not torch.equal(one["random"], other["random"])


@pytest.mark.parametrize("wrap", ["copies", "shards"])
def test_all_ranks_count_what_is_not_finite_and_what_they_hold_alike_once(wrap, ranks):
    one, other = (result["guarded"] for result in ranks(f"{wrap}, skip"))
    assert one["notes"] == other["notes"]
    entries = sum(parameter.numel() for parameter in Net().parameters()) - 5  # that of `gain` does not depend on x
    names = "net.body.0.weight, net.body.0.bias, net.body.2.weight and 3 more"
    assert one["notes"][0] == [f"{entries} gradient entries are not finite, in {names}"]
    assert one["counts"] == other["counts"] == {"non_finite_losses": 1, "non_finite_gradients": entries}
    assert [bool(notes) for notes in one["notes"]] == [index != HUGE for index in BAD]


@pytest.mark.parametrize("wrap", ["copies", "shards"])
def test_all_ranks_warn_of_their_mean_loss(wrap, ranks):
    one, other = (result["guarded"] for result in ranks(f"{wrap}, skip"))
    assert one["warnings"] == other["warnings"]
    assert [batches for batches, _ in one["warnings"]] == [[0]]


@pytest.mark.parametrize("wrap", ["copies", "shards"])
def test_all_ranks_halt_together(wrap, ranks):
    one, other = ranks(f"{wrap}, halted")
    assert one == other
    assert "SpikeGuard halted the run after 3 incidents" in one["report"]
    assert "batch 21 of epoch 0, rank 1" in one["report"]


@pytest.mark.parametrize("wrap", ["copies", "shards"])
def test_a_resumed_run_has_the_random_numbers_of_each_rank(wrap, ranks):
    for result in ranks(f"{wrap}, resumed"):
        assert_same(result["again"]["run"], result["straight"]["run"])
        assert torch.equal(result["again"]["random"], result["straight"]["random"])
