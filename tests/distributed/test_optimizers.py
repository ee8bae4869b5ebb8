# SPDX-License-Identifier: Apache-2.0
"""Optimizers in two real processes: copies stay alike, shards equal the whole, and a resumed run goes on as if not."""

from contextlib import nullcontext
from functools import cache, partial
from unittest.mock import patch

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import (
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)
from torch.distributed.fsdp import fully_shard
from torch.nn.parallel import DistributedDataParallel

from lightning_stable.optim import LAMB, SPAM, AdamAtan2, SophiaG, StableSPAM, fused_adamw
from tests.distributed.processes import (
    Net,
    assert_close,
    assert_same,
    backward,
    everything,
    of_both,
    on_two_ranks,
)

STEPS, STOP = 36, 13  # it stops in the middle of the warm-up after the first reset
RESETS = {"reset_interval": 10, "weight_decay": 0.1, "lr": 0.02}
SPIKY = {**RESETS, "reset_warmup": 6, "spike_threshold": 4.0, "clip_after": 3, "betas": (0.9, 0.99)}
CASES = {
    "SPAM": (SPAM, SPIKY),
    "plain SPAM": (SPAM, SPIKY),  # without torch's fused kernel, which rounds by an entry's place in memory
    "SPAM of a quarter": (SPAM, {**SPIKY, "density": 0.25}),
    "StableSPAM": (StableSPAM, {**RESETS, "total_steps": 40, "theta": 0.9}),
    "LAMB": (LAMB, {"lr": 0.02}),
    "SophiaG": (SophiaG, {"lr": 0.01}),
    "AdamAtan2": (AdamAtan2, {"lr": 0.01, "weight_decay": 0.1}),
}
OF_ENTRIES = ("plain SPAM", "SophiaG", "AdamAtan2")  # each entry by itself
COPIED = [case for case in CASES if case != "plain SPAM"]
SHARDED = [case for case in CASES if case != "SPAM of a quarter"]
RESUMED = [("copies", case) for case in COPIED] + [("shards", case) for case in SHARDED if case != "plain SPAM"]
UNDER_LIGHTNING = [*RESUMED, ("shards, one file", "SPAM"), ("shards, one file", "StableSPAM")]


def precision(wrap, case):
    """Where norms are reduced, sums are rounded in another order than in one process: float64 shows nothing else."""
    return torch.float64 if wrap == "shards" and case not in OF_ENTRIES else torch.float32


def start(case, wrap, dtype, seed=0):
    kind, settings = CASES[case]
    net = Net(seed, dtype)
    net = {"copies": DistributedDataParallel, "shards": fully_shard, None: lambda net: net}[wrap](net)
    return net, kind(net.parameters(), **settings)


def train(net, optimizer, steps, ranks):
    for step in steps:
        optimizer.zero_grad()
        backward(net, step, ranks)
        if isinstance(optimizer, SophiaG) and step % 5 == 0:
            optimizer.update_hessian(batch_size=12)
        optimizer.step()


def trained(case, ranks, wrap, dtype):
    net, optimizer = start(case, wrap, dtype)
    with patch.object(fused_adamw, "_FUSED", None) if case == "plain SPAM" else nullcontext():
        train(net, optimizer, range(1, STEPS + 1), ranks)
    return everything(net, optimizer)


@cache
def alone(case, dtype=torch.float32):
    """One process that sees the data of both ranks."""
    return trained(case, (0, 1), None, dtype)


# What runs on each rank


def uninterrupted(wrap, case, rank, folder):
    return {"run": trained(case, (rank,), wrap, precision(wrap, case)), "random": torch.get_rng_state()}


def resumed(wrap, case, rank, folder):
    net, optimizer = start(case, wrap, precision(wrap, case))
    train(net, optimizer, range(1, STOP + 1), (rank,))
    dcp.save(state_of(net, optimizer), checkpoint_id=folder)
    net, optimizer = start(case, wrap, precision(wrap, case), seed=1)
    state = state_of(net, optimizer)
    dcp.load(state, checkpoint_id=folder)
    set_model_state_dict(net, state["net"])
    set_optimizer_state_dict(net, optimizer, state["optimizer"])
    train(net, optimizer, range(STOP + 1, STEPS + 1), (rank,))
    return {"run": everything(net, optimizer)}


def state_of(net, optimizer):
    return {"net": get_model_state_dict(net), "optimizer": get_optimizer_state_dict(net, optimizer)}


def refused(rank, folder):
    net, optimizer = start("SPAM of a quarter", "shards", torch.float32)
    backward(net, 1, (rank,))
    with pytest.raises(ValueError, match=r"`SPAM\(density=\.\.\.\)`") as error:
        optimizer.step()
    return {"message": str(error.value), "sizes": [parameter.to_local().numel() for parameter in net.parameters()]}


def lightning(wrap, case, rank, folder):
    from tests.distributed.fitted_net import Fitted, fit, strategy_for  # here: the other checks need not wait for it

    kind, settings = CASES[case]

    def to_step(steps, seed=0, ckpt_path=None):
        module = Fitted(kind, settings, Net(seed))
        trainer = fit(module, steps, ckpt_path, devices=2, strategy=strategy_for(wrap))
        return trainer, everything(module, trainer.optimizers[0])

    _, whole_run = to_step(STEPS)
    trainer, _ = to_step(STOP)
    trainer.save_checkpoint(folder / "last.ckpt")
    trainer, again = to_step(STEPS, 1, folder / "last.ckpt")
    return {"run": whole_run, "resumed": again, "steps": trainer.global_step}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    checks = {"refused": refused}
    for wrap, case in [*RESUMED, ("shards", "plain SPAM")]:
        checks[f"{wrap} {case}"] = partial(uninterrupted, wrap, case)
    for wrap, case in RESUMED:
        checks[f"{wrap} {case}, resumed"] = partial(resumed, wrap, case)
    return partial(of_both, on_two_ranks(checks, tmp_path_factory.mktemp("ranks")))


@pytest.fixture(scope="module")
def lightning_ranks(tmp_path_factory):
    checks = {f"{wrap} {case}": partial(lightning, wrap, case) for wrap, case in UNDER_LIGHTNING}
    return partial(of_both, on_two_ranks(checks, tmp_path_factory.mktemp("ranks")))


# Copies and shards


@pytest.mark.parametrize("case", COPIED)
def test_copies_stay_identical_through_spikes_and_nan_on_one_rank(case, ranks):
    one, other = ranks(f"copies {case}")
    assert_same(one["run"], other["run"])
    assert all(value.isfinite().all() for value in one["run"].values())
    assert not torch.equal(one["random"], other["random"])


@pytest.mark.parametrize("case", COPIED)
def test_copies_equal_one_process_that_sees_all_data(case, ranks):
    assert_same(ranks(f"copies {case}")[0]["run"], alone(case))


@pytest.mark.parametrize("case", OF_ENTRIES)
def test_shards_equal_the_whole_where_each_entry_is_on_its_own(case, ranks):
    for result in ranks(f"shards {case}"):
        assert_same(result["run"], alone(case))


@pytest.mark.parametrize("case", sorted({*SHARDED} - {*OF_ENTRIES}))
def test_shards_equal_the_whole_where_norms_are_reduced(case, ranks):
    one, other = ranks(f"shards {case}")
    assert_same(one["run"], other["run"])
    assert_close(one["run"], alone(case, torch.float64), rtol=1e-12, atol=1e-14)


def test_sparse_momentum_of_shards_is_refused_on_all_ranks(ranks):
    one, other = ranks("refused")
    assert one["message"] == other["message"]
    assert one["message"] == (
        "`SPAM(density=...)` must be 1 for sharded parameters, whose shards know nothing of each other's entries, "
        "got 0.25."
    )
    assert one["sizes"] == [3, 8, 2, 9, 3, 6, 1]
    assert other["sizes"] == [2, 4, 1, 9, 3, 0, 0]


# Going on


@pytest.mark.parametrize(("wrap", "case"), RESUMED)
def test_a_run_resumed_in_the_middle_of_a_warmup_equals_an_uninterrupted_one(wrap, case, ranks):
    pairs = zip(ranks(f"{wrap} {case}, resumed"), ranks(f"{wrap} {case}"), strict=True)
    for again, uninterrupted_run in pairs:
        assert_same(again["run"], uninterrupted_run["run"])


@pytest.mark.slow
@pytest.mark.parametrize(("wrap", "case"), UNDER_LIGHTNING)
def test_under_lightning_ranks_agree_and_a_resumed_run_equals_an_uninterrupted_one(wrap, case, lightning_ranks):
    one, other = lightning_ranks(f"{wrap} {case}")
    assert_same(one["run"], other["run"])
    for result in (one, other):
        assert result["steps"] == STEPS
        assert_same(result["resumed"], result["run"])
    assert all(value.isfinite().all() for value in one["run"].values())
