# SPDX-License-Identifier: Apache-2.0
"""Groups keep their ratios, and a recommendation that is applied reaches every schedule as if it had been typed in."""

import pytest
import torch
from torch.optim import SGD, Adam, AdamW
from torch.optim import lr_scheduler as schedules

from lightning_stable.callbacks import LRRangeTest
from lightning_stable.callbacks.range_test.base_rates import BaseRates, set_momentum, set_weight_decay
from lightning_stable.schedules import REX, OneCycle, ProfileLR
from tests.callbacks.range_test.ranged_runs import DATA, SHORT, Net, fit


def parameter():
    return torch.nn.Parameter(torch.ones(2))


def groups(*rates):
    return [{"params": [parameter()], "lr": rate} for rate in rates]


SCHEDULES = {
    "lambda": lambda o, _: schedules.LambdaLR(o, lambda step: 1 / (1 + step)),
    "step": lambda o, _: schedules.StepLR(o, 2),
    "cosine": lambda o, _: schedules.CosineAnnealingLR(o, 9),
    "warm restarts": lambda o, _: schedules.CosineAnnealingWarmRestarts(o, 4),
    "one cycle": lambda o, lr: schedules.OneCycleLR(o, lr, total_steps=12),
    "cyclic": lambda o, lr: schedules.CyclicLR(o, lr / 10, lr, step_size_up=4, cycle_momentum=False),
    "warmup, then decay": lambda o, _: schedules.SequentialLR(
        o, [schedules.LinearLR(o, 0.1, total_iters=3), schedules.ExponentialLR(o, 0.9)], [3]
    ),
    "profile": lambda o, _: ProfileLR(o, REX(), total_steps=12, warmup_steps=3),
    "profile of one cycle": lambda o, _: ProfileLR(o, OneCycle(), total_steps=12),
    "chained": lambda o, _: schedules.ChainedScheduler([schedules.ConstantLR(o, 0.5, 3), schedules.StepLR(o, 4)]),
}


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_new_base_rate_gives_the_rates_of_a_run_that_was_made_with_it(name):
    def rates(lr, new=None):
        optimizer = SGD([parameter()], lr=lr, momentum=0.9)
        scheduler = SCHEDULES[name](optimizer, lr)
        if new is not None:
            base = BaseRates(optimizer, [scheduler])
            assert base.base == lr
            base.make_base(new)
        found = []
        for _ in range(10):
            found.append(optimizer.param_groups[0]["lr"])
            optimizer.step()
            scheduler.step()
        return found

    assert rates(0.1, new=0.7) == pytest.approx(rates(0.7), rel=1e-12)


def test_the_base_rate_is_that_of_the_largest_group_before_any_warmup():
    optimizer = SGD(groups(0.01, 0.2, 0.0))
    schedules.LambdaLR(optimizer, lambda step: step / 10)
    assert [group["lr"] for group in optimizer.param_groups] == [0.0, 0.0, 0.0]
    rates = BaseRates(optimizer)
    assert rates.base == 0.2
    rates.set(2.0)
    assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.1, 2.0, 0.0])


def test_a_rate_in_a_tensor_stays_that_tensor():
    rate = torch.tensor(0.1)
    optimizer = Adam([parameter()], lr=rate, foreach=False)
    held = optimizer.param_groups[0]["lr"]
    BaseRates(optimizer).set(0.5)
    assert optimizer.param_groups[0]["lr"] is held
    assert held.item() == 0.5


@pytest.mark.parametrize("rates", [(0.0,), (0.0, 0.0)])
def test_no_rate_at_all_is_refused(rates):
    with pytest.raises(ValueError, match="needs an optimizer with a learning rate above 0"):
        BaseRates(SGD(groups(*rates)))


def test_momentum_is_set_in_every_group_and_keeps_its_type():
    optimizer = Adam(groups(0.1, 0.2), betas=(0.9, 0.98))
    optimizer.param_groups[1]["betas"] = [0.9, 0.99, 0.999]
    set_momentum(optimizer, 0.3)
    assert [group["betas"] for group in optimizer.param_groups] == [(0.3, 0.98), [0.3, 0.99, 0.999]]
    optimizer = SGD([parameter()], lr=0.1)
    set_momentum(optimizer, 0.3)
    assert optimizer.param_groups[0]["momentum"] == 0.3


def test_weight_decay_is_left_out_where_a_user_left_it_out():
    optimizer = AdamW([{"params": [parameter()]}, {"params": [parameter()], "weight_decay": 0.0}])
    set_weight_decay(optimizer, 0.0)
    set_weight_decay(optimizer, 0.5)  # now there is none that has any: all of them are asked
    assert [group["weight_decay"] for group in optimizer.param_groups] == [0.5, 0.5]


# In a run


@pytest.mark.parametrize("name", ["one cycle", "cyclic"])
def test_applied_the_rate_is_the_peak_of_a_schedule_that_has_one(name):
    callback = LRRangeTest(apply="max_lr", **SHORT)
    seen = []

    class Looks(Net):
        def on_before_optimizer_step(self, optimizer):
            seen.append(optimizer.param_groups[0]["lr"])

    fit(Looks(schedule=lambda optimizer: SCHEDULES[name](optimizer, 0.1)), callback, max_steps=10)
    assert max(seen) == pytest.approx(callback.result.max_lr, rel=0.05)  # which OneCycleLR passes between two steps


@pytest.mark.parametrize("which", ["max_lr", "min_lr", "steepest_lr"])
def test_applied_the_run_is_the_one_that_was_made_with_the_rate(which):
    callback = LRRangeTest(apply=which, **SHORT)
    tested = Net(schedule=lambda optimizer: schedules.CosineAnnealingLR(optimizer, 6))
    fit(tested, callback, max_steps=6)
    plain = Net(
        schedule=lambda optimizer: schedules.CosineAnnealingLR(optimizer, 6), lr=getattr(callback.result, which)
    )
    fit(plain, max_steps=6)
    for one, other in zip(tested.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-6)


def test_applied_the_rate_is_in_the_checkpoint(tmp_path):
    callback = LRRangeTest(apply="min_lr", **SHORT)
    cosine = {"schedule": lambda optimizer: schedules.CosineAnnealingLR(optimizer, 8)}
    straight, resumed = Net(**cosine), Net(**cosine)
    fit(straight, callback, max_steps=5)
    fit(Net(**cosine), LRRangeTest(apply="min_lr", **SHORT), max_steps=3).save_checkpoint(tmp_path / "mid.ckpt")
    again = LRRangeTest(apply="min_lr", **SHORT)
    rest = {"data": DATA.roll(-24, 0), "ckpt_path": tmp_path / "mid.ckpt"}
    trainer = fit(resumed, again, max_steps=5, **rest)
    assert trainer.lr_scheduler_configs[0].scheduler.base_lrs == [callback.result.min_lr]
    assert all(torch.equal(*pair) for pair in zip(straight.parameters(), resumed.parameters(), strict=True))


def test_a_loss_that_never_falls_has_no_steepest_rate_to_apply():
    class Flat(Net):
        def training_step(self, batch, batch_idx):
            return super().training_step(batch, batch_idx) * 0 + 1

    with pytest.warns(UserWarning, match="there is no `steepest_lr`. The run keeps its own rate"):
        trainer = fit(Flat(), LRRangeTest(apply="steepest_lr", **SHORT))
    assert trainer.optimizers[0].param_groups[0]["lr"] == 0.1
