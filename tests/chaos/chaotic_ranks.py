# SPDX-License-Identifier: Apache-2.0
"""The chaotic run on two ranks, each with batches and random numbers of its own."""

import dataclasses
import itertools
import random

import torch
import torch.distributed as dist
from torch.distributed.fsdp import fully_shard

from lightning_stable.testing import FaultSchedule, InjectFault, random_faults
from tests.chaos.chaotic_runs import BATCHES, KINDS, LADDERS, assert_survived, chaotic_run, steps_of_an_epoch
from tests.distributed.fitted_net import strategy_for
from tests.distributed.processes import whole
from tests.faulty_runs import Net, make_batches

RANKS = (0, 1, None)
SETTINGS = list(itertools.product(("copies", "shards"), LADDERS, ("32-true", "bf16-mixed"), (1, 2)))


class RankNet(Net):
    """Sharded, if the strategy knows of a mesh; dropout is of the rank."""

    def configure_model(self):
        if self.device_mesh is not None:
            fully_shard(self.layers, mesh=self.device_mesh["data_parallel"])

    def on_fit_start(self):
        torch.manual_seed(100 + self.global_rank)


def batches_of(rank):
    """Each rank has its own, and the second one only half a batch at the end."""
    batches = make_batches(2 * BATCHES)[rank::2]
    if rank == 1:
        batches[-1] = {key: value[: len(value) // 2] for key, value in batches[-1].items()}
    return batches


def schedule_of(seed, steps) -> FaultSchedule:
    """One to five faults, each on one rank or on both; in one half of the schedules they are all in the data."""
    generator = random.Random(seed)
    in_data = generator.random() < 0.5
    drawn = random_faults(seed, steps=steps, kinds=KINDS, count=1 + seed % 5)
    ranks = [RANKS[int(generator.random() * len(RANKS))] for _ in drawn]
    return FaultSchedule(
        [
            InjectFault(fault.kind, step=fault.step, rank=rank, repeat=in_data, **KINDS[fault.kind])
            for fault, rank in zip(drawn, ranks, strict=True)
        ]
    )


def setting_of(seed):
    """How the network is wrapped, ladder, precision and accumulation."""
    return SETTINGS[(seed * 5) % len(SETTINGS)]  # 5 and 32 have no common divisor


def survive(seed, rank, folder):
    """Run a schedule and look at it; returns what must be the same on both ranks."""
    wrap, ladder, precision, accumulate = setting_of(seed)
    schedule = schedule_of(seed, steps_of_an_epoch(accumulate))

    def settings():
        return {"model": RankNet, "devices": 2, "strategy": strategy_for(wrap), "use_distributed_sampler": False}

    chaos = chaotic_run(schedule, ladder, precision, accumulate, batches=batches_of(rank), settings=settings)
    result = {
        "incidents": [str(incident) for incident in chaos.recovered.incidents],
        "end": [chaos.recovered.halted, chaos.outcome.global_step],
        "hit": [fault.rank for fault in schedule],
        "weights": {name: whole(weight) for name, weight in chaos.outcome.weights.items()},
    }
    share_what_fired(chaos)
    assert_survived(chaos)
    return result


def share_what_fired(chaos):
    """What one rank alone was hit by is no surprise to the other."""
    fired = [None, None]
    dist.all_gather_object(fired, chaos.recovered.fired)
    of_both = sorted({fault for one in fired for fault in one}, key=lambda fault: fault.step)
    chaos.recovered = dataclasses.replace(chaos.recovered, fired=of_both)
