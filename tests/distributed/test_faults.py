# SPDX-License-Identifier: Apache-2.0
"""A fault on one rank of two: who fires, and what the other one gets of it."""

from functools import partial
from itertools import product

import pytest
import torch
from lightning.pytorch import Callback

from lightning_stable.testing import InjectFault
from tests.distributed.fitted_net import Fitted, fit, strategy_for
from tests.distributed.processes import Net, of_both, on_two_ranks, whole

STEP = 3
CHECKS = list(product(("nan_loss", "nan_gradient", "huge_gradient", "nan_activation"), ("copies", "shards")))


class Seen(Callback):
    """The norm of all gradients, of the whole of them, in every step; and whether the own loss was finite."""

    def __init__(self):
        self.norms, self.losses = [], []

    def on_before_backward(self, trainer, pl_module, loss):
        self.losses.append(bool(loss.isfinite()))

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        gradients = [whole(parameter.grad).flatten() for parameter in pl_module.parameters()]
        self.norms.append(float(torch.cat(gradients).norm()))


def train(steps, fault, wrap, callbacks=(), ckpt_path=None):
    module = Fitted(torch.optim.SGD, {"lr": 0.0}, Net(), faults=False)
    return fit(module, steps, ckpt_path, strategy=strategy_for(wrap), devices=2, callbacks=[*callbacks, fault])


def check(kind, wrap, rank, folder):
    fault, seen, again = InjectFault(kind, step=STEP, rank=1), Seen(), InjectFault(kind, step=STEP, rank=1)
    train(STEP + 1, fault, wrap, [seen]).save_checkpoint(folder / "last.ckpt")
    train(STEP + 2, again, wrap, ckpt_path=folder / "last.ckpt")
    fired = {"fired": [fired.step for fired in fault.fired], "resumed": [fired.step for fired in again.fired]}
    return {"norms": seen.norms, "losses": seen.losses, **fired}


@pytest.fixture(scope="module")
def ranks(tmp_path_factory):
    checks = {f"{kind}, {wrap}": partial(check, kind, wrap) for kind, wrap in CHECKS}
    return partial(of_both, on_two_ranks(checks, tmp_path_factory.mktemp("faults")))


@pytest.mark.parametrize(("kind", "wrap"), CHECKS)
def test_each_rank_knows_after_a_resume_what_it_was_hit_by(kind, wrap, ranks):
    zero, one = ranks(f"{kind}, {wrap}")
    assert (zero["resumed"], one["resumed"]) == ([], [STEP])


@pytest.mark.parametrize(("kind", "wrap"), CHECKS)
def test_the_fault_is_of_one_rank_and_its_gradients_are_of_both(kind, wrap, ranks):
    zero, one = ranks(f"{kind}, {wrap}")
    assert (zero["fired"], one["fired"]) == ([], [STEP])
    assert all(zero["losses"])
    assert one["losses"] == [True] * STEP + [kind not in ("nan_loss", "nan_activation")]
    for seen in (zero, one):
        norms = torch.tensor(seen["norms"])
        assert norms[:STEP].isfinite().all()
        assert norms[STEP].isnan() if kind.startswith("nan") else norms[STEP] > 100 * norms[:STEP].max()
