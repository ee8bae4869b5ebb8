# SPDX-License-Identifier: Apache-2.0
"""The guard undoes a bad step of each of our optimizers to the last bit, counters and resets included."""

from functools import partial

import pytest

from lightning_stable import optim
from lightning_stable.callbacks import GradientTransforms
from lightning_stable.guard import Rollback, SkipStep, SpikeGuard
from lightning_stable.transforms import AdaClip, NormGrowthLimiter, SpikeClip, ZScoreClip
from tests.faulty_runs import Net, assert_same, make_batches, run

BAD = (4, 9)
MAKE = {
    "SPAM": partial(optim.SPAM, clip_after=2, reset_interval=5, reset_warmup=2),
    "SPAM, sparse": partial(optim.SPAM, clip_after=2, reset_interval=5, reset_warmup=2, density=0.5),
    "StableSPAM": partial(optim.StableSPAM, reset_interval=5, total_steps=20),
    "SophiaG": optim.SophiaG,
    "LAMB": optim.LAMB,
    "AdamAtan2": optim.AdamAtan2,
    "DiffGrad": optim.DiffGrad,
    "Grams": optim.Grams,
    "SAM": partial(optim.SAM, lr=0.05, base_args={"momentum": 0.9}),
    "SAM around AdamW": partial(optim.SAM, base_optimizer="torch.optim.AdamW", lr=0.01),
}
RESPONSES = {
    "skip": (SkipStep, 50),
    "roll back": (partial(Rollback, mode="replay"), 2),
    "roll back to before the first step": (partial(Rollback, mode="replay"), 50),
}


def guarded_and_clean(response, callbacks, **settings):
    """A run with bad batches under the guard, and one whose loader never held them."""
    answer, every = RESPONSES[response]
    guard = SpikeGuard(ladder=[answer(times=5)], snapshot_every=every)
    model = partial(Net, **settings)
    spoilt = run(make_batches(14, bad=BAD), [guard, *callbacks()], model=model, epochs=1)
    good = [batch for index, batch in enumerate(make_batches(14)) if index not in BAD]
    clean = run(good, callbacks(), model=model, epochs=1)
    assert len(guard.incidents) == len(BAD)
    return [spoilt.weights, spoilt.optimizers], [clean.weights, clean.optimizers]


@pytest.mark.parametrize("response", RESPONSES)
@pytest.mark.parametrize("name", MAKE)
def test_of_every_optimizer(name, response):
    assert_same(*guarded_and_clean(response, list, optimizer=lambda parameters: MAKE[name](list(parameters))))


@pytest.mark.parametrize("response", RESPONSES)
def test_of_stable_spam_where_it_takes_every_tensor_for_a_large_one(response, monkeypatch):
    """Then its moments are in units of their own."""
    monkeypatch.setattr("lightning_stable.optim.chunks.SMALL", 0)
    test_of_every_optimizer("StableSPAM", response)


@pytest.mark.parametrize("response", RESPONSES)
def test_of_a_chain_of_gradient_transforms(response):
    def callbacks():
        chain = [SpikeClip(threshold=2.0, start_after=2), AdaClip(0.9), NormGrowthLimiter(), ZScoreClip(warmup_steps=3)]
        return [GradientTransforms(chain)]

    assert_same(*guarded_and_clean(response, callbacks))


def test_every_optimizer_of_the_room_is_here():
    exported = {name for name in dir(optim) if isinstance(getattr(optim, name), type)}
    optimizers = {name for name in exported if issubclass(getattr(optim, name), optim.MomentOptimizer | optim.SAM)}
    assert optimizers - {"MomentOptimizer"} <= set(MAKE)
