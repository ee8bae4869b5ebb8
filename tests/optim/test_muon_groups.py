# SPDX-License-Identifier: Apache-2.0
import pytest
import torch
from torch import nn

from lightning_stable.optim import muon_groups
from lightning_stable.testbeds import GPT


def named(module):
    names = {parameter: name for name, parameter in module.named_parameters()}
    return [({names[one] for one in group["params"]}, group["use_muon"]) for group in muon_groups(module)]


def test_hidden_matrices_are_muons_and_the_rest_is_adamws():
    model = GPT(256, 2, 2, 8, 4)
    (hidden, first), (outer, second), (spared, third) = named(model)
    assert (first, second, third) == (True, False, False)
    parameters = dict(model.named_parameters())
    assert hidden == {name for name, one in parameters.items() if name.startswith("blocks.") and one.ndim == 2}
    assert spared == {name for name, one in parameters.items() if one.ndim == 1}
    assert outer == parameters.keys() - hidden - spared
    assert muon_groups(model)[2]["weight_decay"] == 0.0
    assert all("weight_decay" not in group for group in muon_groups(model)[:2])


def test_convolutions_before_a_norm_are_muons_too_and_the_last_layer_is_not():
    model = nn.Sequential(nn.Conv2d(3, 8, 3, bias=False), nn.BatchNorm2d(8), nn.Flatten(), nn.Linear(8, 10))
    assert named(model) == [({"0.weight"}, True), ({"3.weight"}, False), ({"1.weight", "1.bias", "3.bias"}, False)]


def test_frozen_parameters_are_in_no_group_and_no_group_is_empty():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 4, bias=False), nn.Linear(4, 2, bias=False))
    model[0].requires_grad_(False)
    assert named(model) == [({"1.weight"}, True), ({"2.weight"}, False)]


def test_the_head_can_be_named():
    model = nn.Sequential(nn.Linear(3, 4, bias=False), nn.Linear(4, 2, bias=False))
    assert [len(group["params"]) for group in muon_groups(model, head=())] == [2]
    names = {parameter: name for name, parameter in model.named_parameters()}
    assert [names[group["params"][0]] for group in muon_groups(model, head="0.weight")] == ["1.weight", "0.weight"]


def test_a_module_without_a_hidden_matrix_is_refused():
    with pytest.raises(
        ValueError, match=r"`muon_groups\(module=...\)` must be .* neither embedding nor head, got Linear"
    ):
        muon_groups(nn.Linear(3, 2))


def test_the_library_takes_the_groups_and_moves_every_parameter():
    muon = pytest.importorskip("pytorch_optimizer").Muon
    model = GPT(256, 1, 2, 8, 4)
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = muon(muon_groups(model), lr=0.02, adamw_lr=3e-3)
    nn.functional.cross_entropy(model(torch.arange(4)[None]).flatten(0, 1), torch.arange(4)).backward()
    optimizer.step()
    assert all((parameter != before[name]).any() for name, parameter in model.named_parameters())
    assert [group["lr"] for group in optimizer.param_groups] == [0.02, 3e-3, 3e-3]
