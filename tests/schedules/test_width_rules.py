# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch
from torch import nn

from lightning_stable.schedules import WidthLRs, width_lrs, width_param_groups
from lightning_stable.testbeds import GPT

# The paper's table 1, for Adam: embedding, hidden, readout, as exponents of the width.
TABLE = {
    ("standard", "full"): (0, -1, -1),
    ("ntk", "full"): (0, -0.5, -0.5),
    ("mup", "full"): (-0.5, -1, -0.5),
    ("mean-field", "full"): (0, -0.5, 0),
    ("standard", "none"): (0, -0.5, -0.5),
    ("ntk", "none"): (0, 0, 0),
    ("mup", "none"): (-0.5, -0.5, 0),
    ("mean-field", "none"): (0, 0, 0.5),
}


def network(width, classes=5):
    return nn.Sequential(nn.Linear(6, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU(), nn.Linear(width, classes))


def rate_of(groups, parameter):
    return next(group["lr"] for group in groups if any(one is parameter for one in group["params"]))


# The rule


@pytest.mark.parametrize(("parametrization", "alignment"), TABLE)
@pytest.mark.parametrize("width", [64, 256, 1024, 384])
def test_rates_are_the_papers_table(parametrization, alignment, width):
    exponents = TABLE[parametrization, alignment]
    expected = [0.02 * (width / 256) ** exponent for exponent in exponents]
    assert width_lrs(0.02, width, 256, parametrization, alignment) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize(("parametrization", "alignment"), TABLE)
def test_at_the_base_width_all_rates_are_the_one_that_was_tuned(parametrization, alignment):
    assert width_lrs(3e-4, 512, 512, parametrization, alignment) == WidthLRs(3e-4, 3e-4, 3e-4)


def test_equivalent_parametrizations_differ_by_the_factor_in_front_of_the_weights():
    """Adam's update does not see the gradient's scale: a weight behind a factor 1/s has to move s times as far."""
    n = 16.0
    standard, ntk = width_lrs(1.0, n, 1), width_lrs(1.0, n, 1, "ntk")
    assert ntk.hidden / math.sqrt(n) == pytest.approx(standard.hidden)
    mup, mean_field = width_lrs(1.0, n, 1, "mup"), width_lrs(1.0, n, 1, "mean-field")
    assert mean_field.readout / n == pytest.approx(mup.readout / math.sqrt(n))
    assert mup.embedding * math.sqrt(n) == pytest.approx(mean_field.embedding)


# The groups


def test_every_layer_of_a_gpt_gets_the_rate_of_its_role():
    wide, base = (GPT(vocab_size=11, n_layer=2, n_head=2, d_model=d, tie_head=False) for d in (64, 16))
    groups = width_param_groups(wide, base, lr=1e-2, weight_decay=0.1)
    assert rate_of(groups, wide.token.weight) == rate_of(groups, wide.position.weight) == 1e-2
    assert rate_of(groups, wide.blocks[1].attn.qkv.weight) == rate_of(groups, wide.blocks[0].mlp.proj.weight) == 2.5e-3
    assert rate_of(groups, wide.head.weight) == 2.5e-3
    assert rate_of(groups, wide.norm.weight) == rate_of(groups, wide.blocks[0].mlp.fc.bias) == 1e-2
    assert {group["weight_decay"] for group in groups if group["name"].startswith("vector")} == {0.0}
    grouped = [id(parameter) for group in groups for parameter in group["params"]]
    assert sorted(grouped) == sorted(map(id, wide.parameters()))


def test_a_first_layer_whose_input_stays_as_it_is_counts_as_embedding():
    wide, base = network(32), network(8)
    groups = width_param_groups(wide, base, lr=1.0, parametrization="mup")
    assert [rate_of(groups, wide[index].weight) for index in (0, 2, 4)] == [0.5, 0.25, 0.5]


def test_convolutions_are_counted_by_channels():
    def net(width):
        return nn.Sequential(
            nn.Conv2d(3, width, 3), nn.Conv2d(width, 2 * width, 3), nn.ConvTranspose2d(2 * width, 1, 3)
        )

    wide = net(12)
    groups = width_param_groups(wide, net(4), lr=0.9, head=())
    assert [rate_of(groups, layer.weight) for layer in wide] == pytest.approx([0.9, 0.3, 0.3])


def test_a_tied_head_has_the_rate_of_the_embedding():
    wide, base = (GPT(vocab_size=11, n_layer=1, n_head=2, d_model=d) for d in (64, 16))
    groups = width_param_groups(wide, base, lr=1e-2)
    assert rate_of(groups, wide.head.weight) == 1e-2
    assert sum(len(group["params"]) for group in groups) == len(list(wide.parameters()))


def test_the_base_may_be_on_no_device_and_is_left_alone():
    with torch.device("meta"):
        base = network(8)
    module = network(16)
    before = copy.deepcopy(module.state_dict())
    groups = width_param_groups(module, base, lr=1.0)
    assert rate_of(groups, module[2].weight) == 0.5
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    torch.optim.AdamW(groups)


def test_frozen_parameters_are_left_out():
    module = network(16)
    module[2].requires_grad_(False)
    params = [one for group in width_param_groups(module, network(8), lr=1.0) for one in group["params"]]
    assert len(params) == 4
    module.requires_grad_(False)
    with pytest.raises(ValueError, match=r"`width_param_groups\(module=...\)` must have parameters that require"):
        width_param_groups(module, network(8), lr=1.0)


def moves(width, groups_of):
    """How far one step of Adam moves what a hidden layer and the readout make of their inputs, on average."""
    torch.manual_seed(0)
    module = network(width).double()
    inputs = torch.randn(256, 6, dtype=torch.float64)
    hidden, readout = module[:2](inputs).detach(), module[:4](inputs).detach()
    before = [module[2].weight.detach().clone(), module[4].weight.detach().clone()]
    optimizer = torch.optim.Adam(groups_of(module), eps=1e-30)  # a dead unit has no gradient
    nn.functional.cross_entropy(module(inputs), torch.randint(5, (256,))).backward()
    optimizer.step()
    after = [module[2].weight.detach(), module[4].weight.detach()]
    return [
        (given @ (new - old).T).abs().mean().item()
        for given, new, old in zip((hidden, readout), after, before, strict=True)
    ]


def test_a_step_moves_the_output_of_a_layer_of_any_width_by_as_much():
    """The property that carries a learning rate over, and what becomes of it with one rate for all."""
    base = network(64)
    ruled = [moves(width, lambda m: width_param_groups(m, base, lr=1e-3)) for width in (64, 512)]
    alike = [moves(width, lambda m: [{"params": m.parameters(), "lr": 1e-3}]) for width in (64, 512)]
    for layer in (0, 1):
        assert 0.5 < ruled[1][layer] / ruled[0][layer] < 1.5
        assert 4.0 < alike[1][layer] / alike[0][layer] < 12.0


# Errors


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"lr": -1.0}, r"`width_lrs\(lr=...\)` must be a number in \[0, inf\), got -1\.0"),
        ({"lr": math.nan}, r"`width_lrs\(lr=...\)` must be a number in \[0, inf\), got nan"),
        ({"width": 0}, r"`width_lrs\(width=...\)` must be a number above 0, got 0"),
        ({"base_width": math.inf}, r"`width_lrs\(base_width=...\)` must be a number above 0, got inf"),
        ({"parametrization": "sp"}, r"`width_lrs\(parametrization=...\)` must be one of 'standard', .*, got 'sp'"),
        ({"alignment": "half"}, r"`width_lrs\(alignment=...\)` must be one of 'full', 'none', got 'half'"),
    ],
)
def test_an_argument_out_of_its_bounds_is_refused_by_name(arguments, message):
    with pytest.raises(ValueError, match=message):
        width_lrs(**{"lr": 1.0, "width": 8, "base_width": 4, **arguments})


@pytest.mark.parametrize(
    ("base", "named"), [(nn.Linear(6, 8), "'0.weight'"), (nn.Sequential(*network(8), nn.Linear(5, 5)), "'5")]
)
def test_a_base_that_is_another_network_is_refused(base, named):
    with pytest.raises(ValueError, match=rf"`width_param_groups\(base=...\)` must be the same network.*{named}"):
        width_param_groups(network(16), base, lr=1.0)
