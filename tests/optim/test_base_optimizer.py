# SPDX-License-Identifier: Apache-2.0
import pytest
import torch

from lightning_stable.optim.base_optimizer import base_optimizer
from lightning_stable.optim.sam import SAM


class WithoutDecay(torch.optim.Optimizer):
    def __init__(self, params, lr=0.1):
        super().__init__(params, {"lr": lr})

    def step(self, closure=None):
        pass


class TakesAnything(torch.optim.SGD):
    def __init__(self, params, **arguments):
        super().__init__(params, **arguments)


def make(kind="torch.optim.AdamW", **arguments):
    return base_optimizer("SAM", [torch.nn.Parameter(torch.ones(2))], kind, **{"lr": 0.1, **arguments})


@pytest.mark.parametrize("kind", ["torch.optim.AdamW", torch.optim.AdamW])
def test_a_name_and_a_class_make_the_same_optimizer(kind):
    optimizer = make(kind, arguments={"betas": [0.5, 0.6]})
    assert type(optimizer) is torch.optim.AdamW
    assert optimizer.param_groups[0]["lr"] == 0.1
    assert [*optimizer.param_groups[0]["betas"]] == [0.5, 0.6]


def test_weight_decay_is_the_optimizer_s_own_unless_it_is_given():
    assert make().param_groups[0]["weight_decay"] == 0.01
    assert make(weight_decay=0.0).param_groups[0]["weight_decay"] == 0.0
    assert make(weight_decay=0.3).param_groups[0]["weight_decay"] == 0.3
    assert make(TakesAnything, weight_decay=0.3).param_groups[0]["weight_decay"] == 0.3
    assert "weight_decay" not in make(WithoutDecay, weight_decay=0.0).param_groups[0]


def test_arguments_that_are_taken_by_any_name_are_handed_on():
    assert make(TakesAnything, arguments={"momentum": 0.7}).param_groups[0]["momentum"] == 0.7


@pytest.mark.parametrize("name", ["torch.optim.NoSuch", "no_such_module.AdamW", "AdamW", ""])
def test_a_name_that_leads_nowhere_is_refused(name):
    with pytest.raises(ValueError, match=rf"`SAM\(base_optimizer=\.\.\.\)` must be the dotted name .* got '{name}'"):
        make(name)


@pytest.mark.parametrize("kind", ["torch.nn.Linear", "torch.ones", 3])
def test_what_is_no_optimizer_is_refused(kind):
    with pytest.raises(ValueError, match=r"`SAM\(base_optimizer=\.\.\.\)` must be a class derived from Optimizer"):
        make(kind)


@pytest.mark.parametrize("kind", [torch.optim.LBFGS, SAM])
def test_one_that_needs_the_closure_itself_is_refused(kind):
    with pytest.raises(ValueError, match=rf"must be an optimizer that steps without a closure, got {kind.__name__}"):
        make(kind)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"arguments": {"momentum": 0.9}}, r"`SAM\(base_args=\.\.\.\)` must hold arguments of AdamW, got 'momentum'"),
        ({"arguments": {"lr": 0.9}}, r"`SAM\(base_args=\.\.\.\)` must not hold 'lr'"),
        ({"arguments": {"weight_decay": 0.9}}, r"`SAM\(base_args=\.\.\.\)` must not hold 'weight_decay'"),
        ({"lr": -1.0}, r"`SAM\(lr=\.\.\.\)` must be at least 0, got -1\.0"),
        ({"weight_decay": -1.0}, r"`SAM\(weight_decay=\.\.\.\)` must be at least 0, got -1\.0"),
        ({"kind": WithoutDecay, "weight_decay": 0.1}, r"`SAM\(weight_decay=\.\.\.\)` must be 0 or `None` with Without"),
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        make(**arguments)


def test_nothing_to_optimize_is_refused():
    with pytest.raises(ValueError, match=r"`SAM\(params=\.\.\.\)` must hold at least one parameter, got none"):
        base_optimizer("SAM", iter(()), "torch.optim.SGD", lr=0.1)
