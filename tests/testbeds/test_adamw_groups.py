# SPDX-License-Identifier: Apache-2.0
from torch import nn

from lightning_stable.testbeds.adamw_groups import adamw_groups


def test_matrices_decay_and_norms_and_biases_do_not():
    module = nn.Sequential(nn.Embedding(4, 3), nn.Linear(3, 3), nn.LayerNorm(3), nn.Conv2d(1, 2, 3))
    decayed, rest = adamw_groups(module, weight_decay=0.1)
    assert (decayed["weight_decay"], rest["weight_decay"]) == (0.1, 0.0)
    assert [id(p) for p in decayed["params"]] == [id(module[i].weight) for i in (0, 1, 3)]
    assert len(decayed["params"]) + len(rest["params"]) == len(list(module.parameters()))


def test_a_shared_weight_is_in_one_group_once():
    module = nn.ModuleDict({"token": nn.Embedding(4, 3), "head": nn.Linear(3, 4, bias=False)})
    module["head"].weight = module["token"].weight
    assert [len(group["params"]) for group in adamw_groups(module, 0.1)] == [1]


def test_frozen_parameters_are_left_out():
    module = nn.Linear(2, 2)
    module.weight.requires_grad_(False)
    assert [group["params"] for group in adamw_groups(module, 0.1)] == [[module.bias]]
