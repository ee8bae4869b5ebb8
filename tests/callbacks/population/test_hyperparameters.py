# SPDX-License-Identifier: Apache-2.0
import copy
from types import SimpleNamespace

import pytest
import torch
from lightning.pytorch import LightningModule
from torch.optim import lr_scheduler as schedules

from lightning_stable.callbacks.population.hyperparameters import Hyperparameters
from lightning_stable.schedules import Cosine, ProfileLR

SCHEDULES = {
    "none": None,
    "lambda": lambda optimizer: schedules.LambdaLR(optimizer, lambda step: 1 / (1 + step)),
    "step": lambda optimizer: schedules.StepLR(optimizer, 3, 0.5),
    "exponential": lambda optimizer: schedules.ExponentialLR(optimizer, 0.9),
    "cosine": lambda optimizer: schedules.CosineAnnealingLR(optimizer, 12),
    "linear": lambda optimizer: schedules.LinearLR(optimizer, 0.1, total_iters=6),
    "one cycle": lambda optimizer: schedules.OneCycleLR(optimizer, [0.1, 0.01], total_steps=12, cycle_momentum=False),
    "profile": lambda optimizer: ProfileLR(optimizer, Cosine(), total_steps=12, warmup_steps=4),
    "cyclic": lambda optimizer: schedules.CyclicLR(optimizer, [0.1, 0.01], [0.2, 0.02], 3, cycle_momentum=False),
    "sequential": lambda optimizer: schedules.SequentialLR(
        optimizer,
        [schedules.LinearLR(optimizer, 0.1, total_iters=4), schedules.CosineAnnealingLR(optimizer, 8)],
        milestones=[4],
    ),
}


class Module(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Sequential(torch.nn.Linear(2, 2), torch.nn.Dropout(0.3))
        self.scale = 1.0
        self.count = 3
        self.is_on = True
        self.register_buffer("temperature", torch.tensor(2.0))


def make(schedule=None, kind=torch.optim.AdamW, **options):
    module = Module()
    weight, bias = module.layer[0].parameters()
    groups = [{"params": [weight], "lr": 0.1, "weight_decay": 0.02}, {"params": [bias], "lr": 0.01, "weight_decay": 0}]
    optimizer = kind(groups, **options)
    configs = [SimpleNamespace(scheduler=schedule(optimizer))] if schedule else []
    return module, SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=configs)


def found(names, module, trainer):
    return Hyperparameters("Call(search=...)", names, trainer, module)


def rates(trainer, steps):
    """The learning rates of both groups in the next steps."""
    seen = []
    for _ in range(steps):
        seen += [float(group["lr"]) for group in trainer.optimizers[0].param_groups]
        trainer.optimizers[0].step()
        for config in trainer.lr_scheduler_configs:
            config.scheduler.step()
    return seen


@pytest.mark.parametrize("name", SCHEDULES)
def test_a_schedule_goes_on_as_if_it_had_always_had_this_base(name):
    module, trainer = make(SCHEDULES[name])
    _, twin = make(SCHEDULES[name])
    assert rates(trainer, 3) == rates(twin, 3)
    lr = found(["lr"], module, trainer)
    base = lr.read()["lr"]
    lr.write({"lr": 5 * base})
    assert lr.read()["lr"] == 5 * base
    assert rates(trainer, 8) == pytest.approx([5 * rate for rate in rates(twin, 8)], rel=1e-12)


@pytest.mark.parametrize(("name", "peak"), [("one cycle", 0.1), ("cyclic", 0.2)])
def test_the_base_of_a_schedule_with_a_peak_is_the_peak(name, peak):
    module, trainer = make(SCHEDULES[name])
    lr = found(["lr"], module, trainer)
    assert lr.read()["lr"] == peak
    lr.write({"lr": 0.5})
    assert max(rates(trainer, 8)) == pytest.approx(0.5, rel=0.05)


@pytest.mark.parametrize("name", SCHEDULES)
def test_to_set_what_is_set_changes_no_bit(name):
    module, trainer = make(SCHEDULES[name])
    values = {"lr": 0.037, "weight_decay": 1 / 3, "betas.0": 0.7, "module.scale": 0.1}
    handles = found(values, module, trainer)
    handles.write(values)
    rates(trainer, 3)
    before = copy.deepcopy(trainer.optimizers[0].state_dict()["param_groups"])
    handles.write(values)
    assert trainer.optimizers[0].state_dict()["param_groups"] == before
    assert handles.read() == values


def test_groups_keep_their_ratio_and_no_decay_stays_none():
    module, trainer = make()
    found(["lr", "weight_decay"], module, trainer).write({"lr": 0.5, "weight_decay": 0.1})
    first, second = trainer.optimizers[0].param_groups
    assert (first["lr"], first["weight_decay"]) == (0.5, 0.1)
    assert second["lr"] == pytest.approx(0.05, rel=1e-12)
    assert second["weight_decay"] == 0


def test_a_decay_that_nobody_has_is_for_all():
    module, trainer = make()
    for group in trainer.optimizers[0].param_groups:
        group["weight_decay"] = 0
    found(["weight_decay"], module, trainer).write({"weight_decay": 0.25})
    assert [group["weight_decay"] for group in trainer.optimizers[0].param_groups] == [0.25, 0.25]


def test_a_decay_that_has_been_0_comes_back_where_it_was():
    module, trainer = make()
    third = {"params": [torch.nn.Parameter(torch.ones(2))], "weight_decay": 0.01}
    trainer.optimizers[0].add_param_group(third)
    handles = found(["weight_decay"], module, trainer)
    for value in (0.0, 0.1, 0.0):
        handles.write({"weight_decay": value})
        assert handles.read() == {"weight_decay": value}
        assert [group["weight_decay"] for group in trainer.optimizers[0].param_groups] == [value, 0.0, value / 2]


def test_elements_of_tuples_and_other_numbers_are_the_same_for_all_groups():
    module, trainer = make()
    found(["betas.1", "eps"], module, trainer).write({"betas.1": 0.95, "eps": 1e-6})
    assert [group["betas"] for group in trainer.optimizers[0].param_groups] == [(0.9, 0.95)] * 2
    assert [group["eps"] for group in trainer.optimizers[0].param_groups] == [1e-6] * 2


def test_a_rate_that_is_a_tensor_stays_the_same_tensor():
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=torch.tensor(0.1))
    tensor = optimizer.param_groups[0]["lr"]
    schedule = schedules.ExponentialLR(optimizer, 0.5)
    trainer = SimpleNamespace(optimizers=[optimizer], lr_scheduler_configs=[SimpleNamespace(scheduler=schedule)])
    handles = found(["lr"], Module(), trainer)
    handles.write({"lr": 0.3})
    assert optimizer.param_groups[0]["lr"] is tensor
    assert float(tensor) == pytest.approx(0.3)
    optimizer.step()
    schedule.step()
    before = tensor.clone()
    handles.write({"lr": 0.3})
    assert torch.equal(tensor, before)
    assert float(tensor) == pytest.approx(0.15)


def test_attributes_of_modules():
    module, trainer = make()
    names = ["module.layer.1.p", "module.scale", "module.count", "module.temperature"]
    handles = found(names, module, trainer)
    assert handles.read() == dict(zip(names, [0.3, 1.0, 3.0, 2.0], strict=True))
    handles.write(dict(zip(names, [0.5, 2.5, 6.6, 0.125], strict=True)))
    assert (module.layer[1].p, module.scale, module.count) == (0.5, 2.5, 7)
    assert isinstance(module.count, int)
    assert module.temperature is module._buffers["temperature"]
    assert float(module.temperature) == 0.125


@pytest.mark.parametrize(
    "name",
    ["lrs", "betas", "betas.2", "betas.x", "params", "amsgrad", "foreach", "module.", "module.is_on", "module.layer",
     "module.layer.9.p", "module.nothing.p", "module.layer.0.weight", ""],
)  # fmt: skip
def test_what_is_no_number_is_refused_with_what_there_is(name):
    module, trainer = make()
    with pytest.raises(
        ValueError, match=r"`Call\(search=\.\.\.\)` knows no .*there are lr, weight_decay, betas\.0, .*module\.scale"
    ):
        found([name], module, trainer)


def test_a_rate_of_zero_has_no_ratios_and_is_refused():
    module, trainer = make()
    for group in trainer.optimizers[0].param_groups:
        group["lr"] = 0.0
    with pytest.raises(ValueError, match="'lr'"):
        found(["lr"], module, trainer)


def test_a_group_that_is_frozen_by_its_rate_stays_so():
    module, trainer = make()
    trainer.optimizers[0].param_groups[0]["lr"] = 0.0
    found(["lr"], module, trainer).write({"lr": 1.0})
    assert [group["lr"] for group in trainer.optimizers[0].param_groups] == [0.0, 1.0]
