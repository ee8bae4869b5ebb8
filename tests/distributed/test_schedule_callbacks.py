# SPDX-License-Identifier: Apache-2.0
"""Schedules of dropout, length and resolution in two real processes: alike on both, counted right, exactly resumed."""

from functools import partial
from itertools import accumulate, groupby
from typing import NamedTuple

import pytest
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from torch import nn
from torch.utils.data import DataLoader

from lightning_stable.callbacks import DropoutSchedule, ResolutionSchedule, SequenceLengthWarmup, TrainingBudget
from lightning_stable.guard import SpikeGuard
from lightning_stable.schedules import ProfileLR
from tests.distributed.processes import of_both, on_two_ranks
from tests.faulty_runs import assert_same

GENERATOR = torch.Generator().manual_seed(3)
DATA = [
    {"tokens": torch.randint(0, 7, (16,), generator=GENERATOR), "pixels": torch.rand(1, 8, 8, generator=GENERATOR)}
    for _ in range(42)
]
EPOCHS, BATCHES = 3, 11  # of an epoch on each rank: ten of two samples, and one of one
RATE, LR = 0.4, 0.1


class Net(LightningModule):
    """Tokens and images, each with a mean of its own, and dropout, which takes the random numbers of its rank."""

    def __init__(self, **schedule):
        super().__init__()
        torch.manual_seed(0)
        self.embedding, self.conv = nn.Embedding(7, 4), nn.Conv2d(1, 4, 3, padding=1)
        self.drop, self.head = nn.Dropout(RATE), nn.Linear(4, 1)
        self.schedule = schedule

    def training_step(self, batch, batch_idx):
        words = self.head(self.drop(self.embedding(batch["tokens"]).mean(1)))
        images = self.head(self.drop(self.conv(batch["pixels"]).relu().mean((2, 3))))
        return (words - 1.0).square().mean() + (images + 1.0).square().mean()

    def configure_optimizers(self):
        optimizer = torch.optim.SGD(self.parameters(), lr=LR, momentum=0.9)
        schedule = ProfileLR(optimizer, "Linear", **self.schedule)
        return [optimizer], [{"scheduler": schedule, "interval": "step"}]


class Batch(NamedTuple):
    epoch: int
    number: int
    step: int
    accumulated: int
    samples: int
    length: int
    side: int
    rate: float


class Watch(Callback):
    """What each batch is like, and the learning rate of each step; saves after a batch of an epoch."""

    def __init__(self, path=None, at=None):
        self.path, self.at = path, at
        self.batches, self.lrs = [], []

    def on_train_start(self, trainer, pl_module):
        trainer.optimizers[0].register_step_pre_hook(self.before_step)

    def before_step(self, optimizer, args, kwargs):
        self.lrs.append(optimizer.param_groups[0]["lr"])

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        place = (trainer.current_epoch, batch_idx, trainer.global_step, trainer.accumulate_grad_batches)
        self.batches.append((*place, *batch["tokens"].shape, batch["pixels"].shape[-1], pl_module.drop.p))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if (trainer.current_epoch, batch_idx) == self.at:
            trainer.save_checkpoint(self.path)


def fit(callbacks, schedule, seed, watch, ckpt_path=None, **settings):
    model = Net(**schedule)
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy="ddp",
        max_epochs=EPOCHS,
        callbacks=[SpikeGuard(), *callbacks, watch],  # with the guard a resume goes on with the next batch
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    torch.manual_seed(seed)
    trainer.fit(model, DataLoader(DATA, batch_size=2, shuffle=True), ckpt_path=ckpt_path)
    return {
        "weights": dict(model.state_dict()),
        "momenta": [state["momentum_buffer"] for state in trainer.optimizers[0].state.values()],
        "position": trainer.lr_scheduler_configs[0].scheduler.position,
        "batches": watch.batches,
        "lrs": watch.lrs,
        "next": torch.rand(3),
    }


def warmup(mode):
    return SequenceLengthWarmup(start=4, multiple_of=4, fraction=0.5, mode=mode, keys=["tokens"])


def resolution(*args, **settings):
    return ResolutionSchedule(*args, lr_rule="linear", **settings)


# callbacks, what a schedule counts, how many in all, A, and the epoch and the batch in it at which a run is interrupted
RUNS = {
    "early": (lambda: [DropoutSchedule("early", fraction=0.5)], "steps", 18, 2, (1, 3)),
    "late": (lambda: [DropoutSchedule("late", epochs=1.5)], "steps", 18, 2, (1, 7)),
    "truncate": (lambda: [warmup("truncate"), TrainingBudget(unit="tokens", key="tokens")], "tokens", 1488, 2, (0, 7)),
    "reshape": (lambda: [warmup("reshape"), TrainingBudget(unit="tokens", key="tokens")], "tokens", 2016, 2, (0, 7)),
    "resolution in steps": (lambda: [resolution()], "steps", 33, 1, (1, 3)),
    "resolution in epochs": (lambda: [resolution()], "epochs", 3, 1, (0, 10)),
    "resolution in samples": (lambda: [resolution(), TrainingBudget(unit="samples")], "samples", 126, 1, (0, 7)),
    "resolution in mid-epoch": (lambda: [resolution([0.75, 1.0], steps=[1])], "steps", 9, 4, (0, 6)),
}


def check(name, rank, folder):  # a lambda does not come through to another process
    make, unit, total, accumulated, at = RUNS[name]
    warmup_steps = 11 if name == "resolution in steps" else 0
    schedule = {"unit": unit, "total_steps": total, "warmup_steps": warmup_steps}
    settings = {"schedule": schedule, "accumulate_grad_batches": accumulated, "default_root_dir": folder}
    whole = fit(make(), seed=rank, watch=Watch(folder / "mid.ckpt", at), **settings)
    rest = fit(make(), seed=2, watch=Watch(), ckpt_path=folder / "mid.ckpt", **settings)
    return {"whole": whole, "rest": rest}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    checks = {name: partial(check, name) for name in RUNS}
    return partial(of_both, on_two_ranks(checks, tmp_path_factory.mktemp("ranks")))


def batches_of(ranks, name):
    return [Batch(*batch) for batch in ranks(name)[0]["whole"]["batches"]]


@pytest.mark.parametrize("name", RUNS)
def test_both_ranks_are_alike_at_every_step(ranks, name):
    one, other = (result["whole"] for result in ranks(name))
    for what in ("batches", "lrs", "position"):
        assert one[what] == other[what]
    assert len(one["batches"]) == EPOCHS * BATCHES
    assert_same(one["weights"], other["weights"])
    assert not torch.equal(one["next"], other["next"])  # though their random numbers are their own


@pytest.mark.parametrize("name", RUNS)
def test_a_resumed_run_equals_one_that_was_not_interrupted(ranks, name):
    epoch, number = RUNS[name][-1]
    for result in ranks(name):
        whole, rest = result["whole"], result["rest"]
        assert rest["batches"] == whole["batches"][epoch * BATCHES + number + 1 :]
        assert rest["lrs"] == whole["lrs"][-len(rest["lrs"]) :]
        for what in ("weights", "momenta", "next", "position"):
            assert_same(rest[what], whole[what])


def test_dropout_ends_or_begins_after_its_share_of_the_steps_of_two_ranks(ranks):
    for batch in batches_of(ranks, "early"):
        assert batch.rate == pytest.approx(RATE * max(0.0, 1 - batch.step / 9))
    for batch in batches_of(ranks, "late"):
        assert batch.rate == (0.0 if batch.step < 9 else RATE)


@pytest.mark.parametrize(("mode", "lengths"), [("truncate", (4, 8, 12, 16)), ("reshape", (4, 8, 8, 16))])
def test_sequences_grow_over_their_share_of_the_steps_of_two_ranks(ranks, mode, lengths):
    for batch in batches_of(ranks, mode):
        assert batch.length == lengths[min(batch.step // 3, 3)]


def test_stages_begin_with_their_epoch_or_step_on_two_ranks(ranks):
    for name in ("resolution in steps", "resolution in epochs", "resolution in samples"):
        for batch in batches_of(ranks, name):
            assert (batch.side, batch.accumulated) == ((4, 4), (6, 2), (8, 1))[batch.epoch]
    for batch in batches_of(ranks, "resolution in mid-epoch"):
        assert (batch.side, batch.accumulated) == ((6, 7) if batch.step < 1 else (8, 4))


@pytest.mark.parametrize("name", RUNS)
def test_a_schedule_counts_what_both_ranks_use(ranks, name):
    _, unit, total, full_window, _ = RUNS[name]
    whole = ranks(name)[0]["whole"]
    steps = [list(batches) for _, batches in groupby(batches_of(ranks, name), key=lambda batch: batch.step)]
    used = [0, *accumulate(used_by(batches, unit, full_window) for batches in steps)]
    assert whole["position"] == pytest.approx(used[-1]) == pytest.approx(total)
    if name == "resolution in steps":
        lrs = [LR * factor for factor in (4 / 11, 8 / 11, 1.0)] + [LR * (1 - (done - 11) / 22) for done in used[3:-1]]
    else:
        lrs = [LR * (1 - done / total) for done in used[:-1]]
    scales = [batches[0].accumulated / full_window for batches in steps]
    assert whole["lrs"] == pytest.approx([lr * scale for lr, scale in zip(lrs, scales, strict=True)])


def used_by(batches, unit, full_window):
    """What a step uses; each rank has half of the samples and tokens, and the last step of an epoch counts whole."""
    if unit == "steps":
        last = batches[-1].number + 1 == BATCHES
        return (len(batches) + (-BATCHES % full_window if last else 0)) / full_window
    if unit == "epochs":
        return len(batches) / BATCHES
    return 2 * sum(batch.samples * (batch.length if unit == "tokens" else 1) for batch in batches)
