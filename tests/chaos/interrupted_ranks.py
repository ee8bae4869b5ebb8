# SPDX-License-Identifier: Apache-2.0
"""Chaotic runs on two ranks that a signal ends, to one of them or to both, and that go on from their last checkpoint.

Every pair of ranks is forked from one process, since to start one takes seconds.
"""

import json
import multiprocessing
import os
import random
import signal
import time
import traceback
from dataclasses import dataclass
from functools import partial

import torch.distributed as dist
from lightning.pytorch import Callback
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities.exceptions import SIGTERMException

from tests.chaos.chaotic_ranks import RankNet, batches_of, schedule_of
from tests.chaos.chaotic_runs import EPOCHS, LADDERS, PRECISIONS, SNAPSHOT_EVERY, steps_of_an_epoch
from tests.distributed.fitted_net import strategy_for
from tests.distributed.processes import become, join_group, whole
from tests.faulty_runs import assert_same, run
from tests.guard.resume.test_exact_resume import comparable
from tests.guard.test_spike_guard import guard

LIMIT = 60  # seconds for one pair of ranks
TERMINATED = 143
WAYS = {
    "the first is killed": (signal.SIGKILL, (0,)),
    "the second is killed": (signal.SIGKILL, (1,)),
    "both are killed": (signal.SIGKILL, (0, 1)),
    "the first is terminated": (signal.SIGTERM, (0,)),
    "the second is terminated": (signal.SIGTERM, (1,)),
    "both are terminated": (signal.SIGTERM, (0, 1)),
}
PLACES = ("batch start", "before backward", "after backward", "optimizer step", "batch end", "validation")


@dataclass(frozen=True)
class Setting:
    """How the network is wrapped and trained, and how and when the run is ended."""

    way: str
    wrap: str
    ladder: str
    precision: str
    accumulate: int
    saved_every: int
    save_on_exception: bool
    step: int
    places: tuple[str, str]  # of a step, where each rank gets its signal


def setting_of(seed):
    """All of them, drawn.

    As in `interrupted_runs.setting_of`: only skips, and replays without transient faults, can be expected to go the
    same way after a resume.
    """
    generator = random.Random(seed)
    accumulate, saved_every = generator.choice((1, 2)), generator.choice((1, 2))
    in_data = all(fault.repeat for fault in schedule_of(seed, steps_of_an_epoch(accumulate)))
    return Setting(
        way=list(WAYS)[seed % len(WAYS)],
        wrap=("copies", "shards", "shards, one file")[(seed + seed // len(WAYS)) % 3],
        ladder=generator.choice(("skip", "replay")) if in_data else "skip",
        precision=generator.choice(("32-true", "bf16-mixed")),
        accumulate=accumulate,
        saved_every=saved_every,
        save_on_exception=generator.random() < 0.5,
        # once something is saved, and while so many steps lie ahead that not all of them can be left out
        step=saved_every + 1 + generator.randrange(4 // accumulate),
        places=(generator.choice(PLACES), generator.choice(PLACES)),
    )


class Signalled(Callback):
    """The own process gets a signal, at one of several places of a step, or in the first validation."""

    def __init__(self, number, ranks, step, place):
        self.number, self.ranks, self.step, self.place = number, ranks, step, place
        self._sent = False

    def _be_at(self, place, trainer):
        due = place == "validation" or trainer.global_step >= self.step
        if due and place == self.place and trainer.global_rank in self.ranks and not self._sent:
            self._sent = True
            os.kill(os.getpid(), self.number)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self._be_at("batch start", trainer)

    def on_before_backward(self, trainer, pl_module, loss):
        self._be_at("before backward", trainer)

    def on_after_backward(self, trainer, pl_module):
        self._be_at("after backward", trainer)

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self._be_at("optimizer step", trainer)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self._be_at("batch end", trainer)

    def on_validation_batch_start(self, trainer, pl_module, batch, batch_idx, dataloader_idx=0):
        self._be_at("validation", trainer)


def train(seed, rank, folder, callbacks=(), **arguments):
    """The incidents, in words, and the end of a run; in `folder` is what it leaves behind."""
    setting = setting_of(seed)
    guarded = guard(*LADDERS[setting.ladder](), snapshot_every=SNAPSHOT_EVERY, forgive_after=5)
    outcome = run(
        batches_of(rank),
        [guarded, *schedule_of(seed, steps_of_an_epoch(setting.accumulate)), *callbacks],
        shuffle=True,
        model=RankNet,
        devices=2,
        strategy=strategy_for(setting.wrap),
        use_distributed_sampler=False,
        accumulate_grad_batches=setting.accumulate,
        epochs=EPOCHS,
        default_root_dir=folder,
        **PRECISIONS[setting.precision](),
        **arguments,
    )
    outcome.weights = {name: whole(weight) for name, weight in outcome.weights.items()}
    incidents = [str(incident) for incident in guarded.incidents]
    if setting.ladder == "replay":
        incidents = [line.partition(": ")[2] for line in incidents]  # a replay that is resumed counts other steps
    outcome = comparable(outcome)
    if setting.wrap != "copies":
        outcome.buffers = []  # each rank has its own, and a checkpoint holds those of one
    return incidents, outcome


def end(seed, rank, folder):
    """Train until the signal comes."""
    setting = setting_of(seed)
    number, ranks = WAYS[setting.way]
    last = ModelCheckpoint(
        dirpath=folder,
        filename="best",
        save_last=True,
        every_n_train_steps=setting.saved_every,
        enable_version_counter=False,
        save_on_exception=setting.save_on_exception,
    )
    signalled = Signalled(number, ranks, setting.step, setting.places[rank])
    train(seed, rank, folder, [signalled, last], enable_checkpointing=True)


def go_on(seed, rank, folder):
    """Go on from what is left, and compare it with a run that nobody ended."""
    expected = train(seed, rank, folder / "whole")
    assert_same(train(seed, rank, folder / "resumed", ckpt_path=folder / "last.ckpt"), expected)


def _be_rank(rank, work, folder, store):
    become(rank)
    status = 1
    try:
        join_group(rank, dist.FileStore(str(store), 2))
        work(rank, folder)
        status = 0
    except SIGTERMException:
        status = TERMINATED
    except BaseException:
        (folder / f"{store.name}.{rank}.error").write_text(traceback.format_exc())
    os._exit(status)  # which closes the connections: the other rank does not wait


def on_two_forks(work, folder, name):
    """How `work(rank, folder)` ended on both ranks: a status, a signal's number made negative, or "hung"."""
    context = multiprocessing.get_context("fork")
    ranks = [context.Process(target=_be_rank, args=(rank, work, folder, folder / name)) for rank in range(2)]
    for process in ranks:
        process.start()
    deadline = time.monotonic() + LIMIT
    for process in ranks:
        process.join(max(0.0, deadline - time.monotonic()))
    statuses = ["hung" if process.exitcode is None else process.exitcode for process in ranks]
    for process in ranks:
        process.kill()
    return statuses


def end_and_go_on(seeds, folder):
    """For each seed a folder, and in it, as `statuses`, what `end` and `go_on` came to."""
    for seed in seeds:
        own = folder / str(seed)
        own.mkdir(parents=True)
        statuses = {work.__name__: on_two_forks(partial(work, seed), own, work.__name__) for work in (end, go_on)}
        (own / "statuses").write_text(json.dumps(statuses))
