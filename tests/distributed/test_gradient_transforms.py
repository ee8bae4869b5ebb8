# SPDX-License-Identifier: Apache-2.0
"""`GradientTransforms` in two real processes: what shards and copies make of it is what one process makes of it."""

from functools import cache, partial

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.callbacks import GradientTransforms
from lightning_stable.optim import AdamAtan2
from lightning_stable.transforms import (
    AdaClip,
    AdaGradNorm,
    AdaptiveGradientClip,
    GlobalNormClip,
    GradientCentralization,
    NormGrowthLimiter,
    OrthogonalGradient,
    SpikeClip,
    ZScoreClip,
)
from tests.distributed.fitted_net import Fitted, fit, strategy_for
from tests.distributed.processes import SPIKES, Net, assert_close, assert_same, everything, of_both, on_two_ranks, whole

STEPS, STOP = 20, 12  # spikes are in both parts
TRANSFORMS = {
    "GlobalNormClip": partial(GlobalNormClip, max_norm=1.0),
    "AdaClip": partial(AdaClip, theta=0.9),
    "AdaGradNorm": AdaGradNorm,
    "ZScoreClip": partial(ZScoreClip, warmup_steps=4),
    "NormGrowthLimiter": NormGrowthLimiter,
    "AdaptiveGradientClip": partial(AdaptiveGradientClip, clipping=0.02),
    "OrthogonalGradient": OrthogonalGradient,
    "GradientCentralization": GradientCentralization,
    "SpikeClip": partial(SpikeClip, threshold=4.0, start_after=4),
    "SpikeClip, its own moment": partial(SpikeClip, threshold=4.0, start_after=4, beta2=0.9),
}
OPTIMIZERS = {"SpikeClip, its own moment": torch.optim.SGD}  # which has no second moment; the others have AdamW
CHAIN = ("SpikeClip", "AdaClip", "GradientCentralization", "ZScoreClip")


class Seen(Callback):
    """Notes gradients as the chain leaves them and what it logs; saves a checkpoint in mid-run."""

    def __init__(self, chain, path=None):
        self.chain, self.path, self.gradients, self.logged, self.state = chain, path, {}, {}, None

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        for number, parameter in enumerate(pl_module.parameters()):
            self.gradients[f"{trainer.global_step + 1}.{number}"] = whole(parameter.grad)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        logged = {name.removeprefix("stability/transforms/"): value for name, value in trainer.callback_metrics.items()}
        self.logged.update({f"{trainer.global_step} {name}": torch.as_tensor(value) for name, value in logged.items()})
        if trainer.global_step == STOP and self.path is not None:
            self.state = self.chain.state_dict()
            trainer.save_checkpoint(self.path)


def run(names, optimizer=None, seed=0, path=None, ckpt_path=None, faults=False, steps=STEPS, **settings):
    chain = GradientTransforms([TRANSFORMS[name]() for name in names])
    optimizer = optimizer or OPTIMIZERS.get(names[0], torch.optim.AdamW)
    seen, module = Seen(chain, path), Fitted(optimizer, {"lr": 0.02}, Net(seed), faults)
    trainer = fit(module, steps, ckpt_path, callbacks=[chain, seen], **settings)
    run = everything(module, trainer.optimizers[0])
    return {
        "run": run,
        "gradients": seen.gradients,
        "logged": seen.logged,
        "saved": seen.state,
        "end": chain.state_dict(),
    }


@cache
def alone(names, **settings):
    """One process that sees the data of both ranks."""
    return run(names, **settings)


# What runs on each rank


def sharded(name, rank, folder):
    result = run([name], path=folder / "last.ckpt", devices=2, strategy=strategy_for("shards"))
    in_checkpoint = torch.load(folder / "last.ckpt" / "meta.pt", weights_only=True)["callbacks"]["GradientTransforms"]
    again = run([name], seed=1, ckpt_path=folder / "last.ckpt", devices=2, strategy=strategy_for("shards"))
    return {**result, "in checkpoint": in_checkpoint, "again": again}


def copied(rank, folder):
    return run(CHAIN, AdamAtan2, faults=True, steps=36, devices=2, strategy=strategy_for("copies"))


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    checks = {name: partial(sharded, name) for name in TRANSFORMS} | {"copies": copied}
    return partial(of_both, on_two_ranks(checks, tmp_path_factory.mktemp("ranks")))


# Shards


@pytest.mark.parametrize("name", TRANSFORMS)
def test_shards_come_out_as_one_process_does(name, ranks):
    one, expected = ranks(name)[0], alone((name,))
    for what in ("gradients", "run", "logged"):
        assert_close(one[what], expected[what], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", TRANSFORMS)
def test_all_ranks_agree_on_gradients_weights_and_what_is_logged(name, ranks):
    one, other = ranks(name)
    for what in ("gradients", "run", "logged"):
        assert_same(one[what], other[what])


@pytest.mark.parametrize("name", TRANSFORMS)
def test_the_chain_is_in_the_checkpoint_and_a_resumed_run_goes_on_with_it(name, ranks):
    for result in ranks(name):
        assert flat(result["in checkpoint"]) == flat(result["saved"])
        assert flat(result["again"]["end"]) == flat(result["end"])
        assert_same(result["again"]["run"], result["run"])
        assert_same(result["again"]["gradients"], later(result["gradients"]))


def later(gradients):
    return {name: gradient for name, gradient in gradients.items() if int(name.partition(".")[0]) > STOP}


def flat(state):
    """A state as plain values, which can be compared."""
    if isinstance(state, dict):
        return {key: flat(value) for key, value in state.items()}
    if isinstance(state, list):
        return [flat(value) for value in state]
    return state.tolist() if isinstance(state, torch.Tensor) else state


def test_spike_clip_uses_the_shards_of_the_second_moment_of_adamw(ranks):
    for result in ranks("SpikeClip"):
        (state,) = result["end"]["chains"][0]
        assert state == {"steps_taken": STEPS, "exp_avg_sq": {}}  # it has none of its own
        assert result["logged"][f"{SPIKES[1]} clip_rate/SpikeClip"] > 0


# Copies


def test_copies_under_a_chain_stay_identical_through_spikes_and_nan_on_one_rank(ranks):
    one, other = ranks("copies")
    for what in ("run", "logged"):
        assert_same(one[what], other[what])
    assert flat(one["end"]) == flat(other["end"])
    assert all(value.isfinite().all() for value in one["run"].values())
    assert_close(one["run"], alone(CHAIN, optimizer=AdamAtan2, faults=True, steps=36)["run"], rtol=1e-5, atol=1e-6)
