# SPDX-License-Identifier: Apache-2.0
import io
import math
import re

import pytest
import torch
from lightning.pytorch import LightningModule
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from lightning_stable.parameters import normalized_weight_decay, param_groups, parameter_roles


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.norm, self.fc, self.proj = nn.LayerNorm(4), nn.Linear(4, 8), nn.Linear(8, 4)
        self.scale = nn.Parameter(torch.ones(4))


class GPT(nn.Module):
    def __init__(self, n_layer=3, tied=False, head="head"):
        super().__init__()
        self.token = nn.Embedding(9, 4)
        self.blocks = nn.ModuleList(Block() for _ in range(n_layer))
        self.norm = nn.LayerNorm(4)
        setattr(self, head, nn.Linear(4, 9, bias=False))
        if tied:
            getattr(self, head).weight = self.token.weight


class Lit(LightningModule):
    def __init__(self, model):
        super().__init__()
        self.model, self.loss = model, nn.CrossEntropyLoss(weight=torch.ones(9))


def holding(kind, inside=None):
    """A module of a class of this name, with a matrix of its own."""
    module = type(kind, (nn.Module,), {"forward": lambda self, weight: weight + self.mix})()
    module.mix, module.inside = nn.Parameter(torch.zeros(4, 4)), inside
    return module


def conv_net():
    first = nn.Sequential(nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4), nn.ReLU())
    return nn.Sequential(*first, nn.Conv2d(4, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 1))


def having(role, module, **arguments):
    return [name for name, found in parameter_roles(module, **arguments).items() if found == role]


def named_groups(module, **arguments):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = param_groups(module, 0.1, **arguments)
    return {group["name"]: [names[id(parameter)] for parameter in group["params"]] for group in groups}


def learning_rates(module, lr=1.0, layer_decay=0.5, **arguments):
    names = {id(parameter): name for name, parameter in module.named_parameters()}
    groups = param_groups(module, 0.1, lr, layer_decay, **arguments)
    return {names[id(parameter)]: group["lr"] for group in groups for parameter in group["params"]}


def reference_learning_rate(name, n_layer, lr, layer_decay):
    depth = n_layer + 1
    layer = int(name.split(".")[1]) + 1 if name.startswith("blocks.") else 0 if name.startswith("token") else depth
    return lr * math.prod([layer_decay] * (depth - layer))


def refused(call, argument, rest):
    return pytest.raises(ValueError, match=re.escape(f"`{call}({argument}=...)` must be {rest}"))


# Roles


def test_each_parameter_of_a_gpt_has_the_role_its_module_gives_it():
    block = {"scale": "vector", "norm.weight": "norm", "norm.bias": "norm"}
    block |= {"fc.weight": "matrix", "fc.bias": "bias", "proj.weight": "matrix", "proj.bias": "bias"}
    expected = {"token.weight": "embedding", **{f"blocks.0.{name}": role for name, role in block.items()}}
    expected |= {"norm.weight": "norm", "norm.bias": "norm", "head.weight": "head"}
    assert parameter_roles(GPT(n_layer=1)) == expected
    assert list(parameter_roles(GPT(n_layer=1))) == [name for name, _ in GPT(n_layer=1).named_parameters()]
    assert parameter_roles(Lit(GPT(n_layer=1))) == {f"model.{name}": role for name, role in expected.items()}


def test_gain_and_bias_of_a_norm_are_of_the_norm_but_a_wrapper_called_norm_is_none():
    norms = [nn.LayerNorm(4), nn.RMSNorm(4), nn.GroupNorm(2, 4), nn.BatchNorm1d(4), nn.SyncBatchNorm(4)]
    for norm in (*norms, nn.InstanceNorm2d(4, affine=True), nn.LazyBatchNorm2d(), holding("RootMeanSquareNorm")):
        assert set(parameter_roles(norm).values()) == {"norm"}
    assert set(parameter_roles(holding("PreNorm", inside=nn.Embedding(4, 4))).values()) == {"matrix", "embedding"}


def test_attention_and_recurrent_layers_have_matrices_and_biases_and_no_head():
    attention = nn.MultiheadAttention(4, 2, kdim=3, vdim=5, add_bias_kv=True)
    for module in (nn.MultiheadAttention(4, 2), attention, nn.LSTM(3, 1, 2, bidirectional=True), nn.GRUCell(1, 1)):
        for name, role in parameter_roles(module).items():
            assert role == ("bias" if "bias" in name else "matrix")


def test_other_parameters_go_by_their_name_and_then_by_their_shape():
    module = nn.Module()
    assert parameter_roles(module) == {}
    expected = {"pos_embedding": "embedding", "cls_token": "embedding", "relative_bias_table": "bias"}
    expected |= {"temperature": "vector", "empty": "vector", "gamma": "vector", "mixing": "matrix"}
    shapes = [(1, 16, 4), (1, 1, 4), (7, 7), (), (0,), (1, 4, 1, 1), (4, 4)]
    for name, shape in zip(expected, shapes, strict=True):
        module.register_parameter(name, nn.Parameter(torch.zeros(shape)))
    assert parameter_roles(module) == expected
    assert having("matrix", nn.Sequential(nn.Linear(4, 1), nn.Conv1d(1, 1, 3), nn.Linear(1, 4)))[1:] == ["1.weight"]


def test_lazy_and_meta_modules_have_roles_before_they_have_values():
    lazy = nn.Sequential(nn.LazyConv2d(4, 3, bias=False), nn.LazyBatchNorm2d(), nn.Flatten(), nn.LazyLinear(2))
    assert list(parameter_roles(lazy).values()) == ["scale-invariant", "norm", "norm", "head", "bias"]
    with torch.device("meta"):
        assert parameter_roles(GPT()) == parameter_roles(GPT())


def test_looking_at_a_module_changes_nothing():
    module = nn.Sequential(parametrizations.spectral_norm(nn.Linear(4, 4)), nn.BatchNorm1d(4), nn.Linear(4, 2))
    before = {name: value.clone() for name, value in module.state_dict().items()}
    rng = torch.get_rng_state()
    param_groups(module, 0.1, lr=1.0, layer_decay=0.5)
    assert all(torch.equal(value, before[name]) for name, value in module.state_dict().items())
    assert torch.equal(torch.get_rng_state(), rng)


def test_the_last_layer_is_the_head():
    assert having("head", nn.Linear(3, 2)) == ["weight"]
    assert having("head", nn.Sequential(nn.Linear(3, 4), nn.ReLU(), nn.Linear(4, 2))) == ["2.weight"]
    assert having("head", conv_net()) == ["5.weight"]
    assert having("head", GPT(head="to_vocabulary")) == ["to_vocabulary.weight"]
    assert having("head", nn.ModuleDict({"rnn": nn.LSTM(3, 4), "out": nn.Linear(4, 2)})) == ["out.weight"]


def test_a_module_that_ends_otherwise_has_no_head():
    whole = [nn.Transformer(4, 2, 1, 1, 8, batch_first=True), nn.TransformerEncoderLayer(4, 2, 8), nn.Embedding(3, 4)]
    trunk = nn.ModuleDict({"patch": nn.Conv2d(1, 4, 2), "blocks": nn.ModuleList([Block()])})
    recurrent = nn.ModuleDict({"input": nn.Linear(3, 4), "rnn": nn.LSTM(4, 4)})
    normed = nn.Sequential(nn.Linear(4, 4, bias=False), nn.BatchNorm1d(4))
    for module in (*whole, trunk, recurrent, normed, nn.Sequential(nn.Linear(4, 4), Block(), Block())):
        assert having("head", module) == []


def test_a_module_called_head_is_the_head_wherever_it_is_and_a_frozen_copy_hides_none():
    head = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2))
    assert having("head", nn.ModuleDict({"head": head, "body": nn.Linear(4, 4)})) == ["head.2.weight"]
    copies = nn.ModuleDict({"student": GPT(head="out"), "teacher": GPT(head="out").requires_grad_(False)})
    assert having("head", copies) == ["student.out.weight"]


def test_the_head_can_be_named_by_module_parameter_or_expression():
    module = nn.ModuleDict({"a": nn.Linear(4, 2), "b": nn.Linear(4, 2), "c": nn.Linear(4, 2)})
    assert having("head", module, head="a") == having("head", module, head=["a.weight"]) == ["a.weight"]
    assert having("head", module, head=()) == having("head", nn.ReLU()) == []
    assert having("head", module, head="[ab]") == having("head", module, head=["a", "b"]) == ["a.weight", "b.weight"]
    assert having("head", nn.ModuleDict({"model": module}), head=".*b") == ["model.b.weight"]


def test_a_head_tied_to_the_embedding_is_an_embedding_and_there_once_under_its_first_name():
    for head in (None, "head", "token", ()):
        assert having("embedding", GPT(tied=True), head=head) == ["token.weight"]
        assert having("head", GPT(tied=True), head=head) == []
    module = nn.ModuleDict({"head": nn.Linear(4, 9, bias=False), "token": nn.Embedding(9, 4)})
    module["token"].weight = module["head"].weight
    assert parameter_roles(module) == {"head.weight": "embedding"}
    assert named_groups(module) == {"decay": ["head.weight"]}


def test_a_layer_used_twice_is_scale_invariant_only_if_it_is_everywhere():
    layer = nn.Linear(4, 4, bias=False)
    normalised, plain = nn.Sequential(layer, nn.LayerNorm(4)), nn.Sequential(layer, nn.ReLU())
    assert parameter_roles(nn.ModuleList([normalised, normalised]))["0.0.weight"] == "scale-invariant"
    assert parameter_roles(nn.ModuleList([normalised, plain]))["0.0.weight"] == "matrix"


SCALE_FREE = {
    "batch norm": (nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4, eps=1e-30)),
    "batch norm after a bias": (nn.Conv2d(3, 4, 3), nn.Identity(), nn.BatchNorm2d(4, eps=1e-30)),
    "instance norm after a bias": (nn.Conv2d(3, 4, 3, padding=1), nn.InstanceNorm2d(4, eps=0.0, affine=True)),
    "group norm": (nn.ConvTranspose2d(3, 4, 3, bias=False), nn.GroupNorm(2, 4, eps=0.0)),
    "layer norm": (nn.Linear(6, 4, bias=False), nn.LayerNorm(4, eps=0.0), nn.Linear(4, 2)),
    "rms norm": (nn.Linear(6, 4, bias=False), nn.RMSNorm(4, eps=0.0), nn.Linear(4, 2)),
    "weight norm": (parametrizations.weight_norm(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 2)),
    "spectral norm": (parametrizations.spectral_norm(nn.Linear(6, 4)), nn.ReLU(), nn.Linear(4, 2)),
}


@pytest.mark.parametrize("case", list(SCALE_FREE))
def test_only_the_scale_of_a_scale_invariant_weight_changes_nothing(case):
    module = nn.Sequential(*SCALE_FREE[case]).double().train("spectral" not in case)
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(5, 3, 6, 6, generator=generator, dtype=torch.float64)
    parameters, roles = dict(module.named_parameters()), parameter_roles(module)
    assert list(roles.values()).count("scale-invariant") == 1
    for name in (name for name, role in roles.items() if role in ("scale-invariant", "matrix", "head", "norm")):
        with torch.no_grad():
            parameters[name].add_(torch.randn(parameters[name].shape, generator=generator, dtype=torch.float64))
            before = module(x)
            parameters[name].mul_(3.0)
            scaled = module(x)
        assert torch.allclose(scaled, before, rtol=1e-9, atol=1e-12) == (roles[name] == "scale-invariant")


def test_a_weight_whose_scale_is_not_removed_is_scale_invariant_only_if_somebody_says_so():
    assert having("scale-invariant", nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 2))) == []
    assert having("scale-invariant", nn.Sequential(nn.Conv2d(3, 4, 3), nn.GroupNorm(2, 4))) == []
    assert having("scale-invariant", nn.Sequential(nn.Linear(3, 4, bias=False), nn.ReLU(), nn.BatchNorm1d(4))) == []
    found = having("scale-invariant", GPT(n_layer=2), scale_invariant=[r"blocks\.\d+\.fc\.weight", "token"])
    assert found == ["token.weight", "blocks.0.fc.weight", "blocks.1.fc.weight"]


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated.*:FutureWarning")
def test_weight_norm_gives_a_direction_and_a_magnitude_and_the_older_hooks_do_too():
    module = nn.Sequential(*(parametrizations.weight_norm(nn.Linear(4, 4)) for _ in range(2)))
    found = [role for name, role in parameter_roles(module).items() if "original" in name]
    assert found == ["vector", "scale-invariant", "vector", "head"]
    roles = parameter_roles(nn.utils.weight_norm(nn.LSTM(3, 4), "weight_hh_l0"))
    assert (roles["weight_hh_l0_g"], roles["weight_hh_l0_v"]) == ("vector", "scale-invariant")
    spectral = nn.Sequential(nn.utils.spectral_norm(nn.Linear(3, 4)), nn.Linear(4, 2))
    assert having("scale-invariant", spectral) == ["0.weight_orig"]


def test_other_parametrized_weights_keep_the_role_of_their_layer():
    original = "parametrizations.weight.original"
    assert parameter_roles(parametrizations.orthogonal(nn.Linear(4, 4)))[original] == "head"
    assert parameter_roles(parametrizations.spectral_norm(nn.Embedding(9, 4))) == {original: "embedding"}
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", holding("Shift"))
    assert parameter_roles(layer)["parametrizations.weight.0.mix"] == "matrix"


# Groups


def test_norms_biases_and_vectors_do_not_decay_and_all_else_does():
    module = GPT(n_layer=2)
    groups = param_groups(module, 0.1)
    assert [(group["name"], group["weight_decay"]) for group in groups] == [("decay", 0.1), ("no_decay", 0.0)]
    for group, ndim in zip(groups, (2, 1), strict=True):
        expected = [parameter for parameter in module.parameters() if parameter.ndim == ndim]
        assert [id(parameter) for parameter in group["params"]] == [id(parameter) for parameter in expected]
        assert "lr" not in group


@pytest.mark.parametrize("layer_decay", [None, 0.75])
def test_each_trained_parameter_is_in_one_group_in_the_order_of_the_module(layer_decay):
    recurrent = nn.ModuleList([nn.LSTM(3, 4), nn.MultiheadAttention(4, 2), nn.Linear(4, 3)])
    normed = nn.Sequential(parametrizations.weight_norm(nn.Linear(3, 4)), nn.BatchNorm1d(4), nn.Linear(4, 2))
    transformer = nn.Transformer(4, 2, 1, 1, 8, batch_first=True)
    for module in (GPT(), Lit(GPT(tied=True)), conv_net(), transformer, recurrent, normed):
        next(module.parameters()).requires_grad_(False)
        position = {id(parameter): i for i, parameter in enumerate(module.parameters()) if parameter.requires_grad}
        groups = param_groups(module, 0.1, lr=1.0, layer_decay=layer_decay)
        found = [[position[id(parameter)] for parameter in group["params"]] for group in groups]
        assert all(members == sorted(members) and members for members in found)
        assert sorted(place for members in found for place in members) == sorted(position.values())
        assert len({group["name"] for group in groups}) == len(groups)


def test_roles_and_names_say_what_does_not_decay():
    module = GPT(n_layer=1)
    everything = [name for name, _ in module.named_parameters()]
    spared = {"no_decay": ["embedding", "head"], "no_decay_names": "blocks"}
    assert named_groups(module, **spared)["decay"] == ["norm.weight", "norm.bias"]
    assert named_groups(module, no_decay=[]) == {"decay": everything}
    assert named_groups(module, no_decay_names=[".*"]) == {"no_decay": everything}
    invariant = named_groups(module, no_decay=["scale-invariant"], scale_invariant=r".*\.proj\.weight")
    assert invariant["no_decay"] == ["blocks.0.proj.weight"]
    assert "token.weight" in named_groups(GPT(tied=True), no_decay_names="head")["no_decay"]


OPTIMIZERS = ["SGD", "Adam", "AdamW", "NAdam", "RAdam", "RMSprop", "Adagrad", "Adadelta", "Adamax", "Adafactor", "ASGD"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_the_groups_suit_the_optimizers_of_torch_and_their_checkpoints(name):
    module, kind = GPT(), getattr(torch.optim, name)
    optimizer = kind(param_groups(module, 0.1, lr=1e-3, layer_decay=0.5))
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizer.step()
    torch.save(optimizer.state_dict(), file := io.BytesIO())
    file.seek(0)
    again = kind(param_groups(module, 0.1, lr=1.0, layer_decay=0.9))
    again.load_state_dict(torch.load(file, weights_only=True))
    for loaded, group in zip(again.param_groups, optimizer.param_groups, strict=True):
        assert (loaded["name"], loaded["lr"]) == (group["name"], group["lr"])


@pytest.mark.parametrize("n_layer", [1, 2, 12])
def test_the_learning_rate_falls_geometrically_and_frozen_layers_keep_their_place(n_layer):
    module = GPT(n_layer)
    module.blocks[0].requires_grad_(False)
    found = learning_rates(module, lr=1e-3, layer_decay=0.75)
    assert len(found) == len(list(module.parameters())) - len(list(module.blocks[0].parameters()))
    for name, lr in found.items():
        assert lr == pytest.approx(reference_learning_rate(name, n_layer, 1e-3, 0.75), rel=1e-12)
    assert (found["head.weight"], found["token.weight"]) == (max(found.values()), min(found.values()))
    for layer_decay in (None, 1.0):
        assert set(learning_rates(module, lr=0.3, layer_decay=layer_decay).values()) == {0.3}


def test_a_step_of_sgd_is_as_long_as_the_layer_says_and_decays_what_it_should():
    module = GPT(n_layer=2).double()
    before = {name: parameter.detach().clone() for name, parameter in module.named_parameters()}
    for parameter in module.parameters():
        parameter.grad = torch.ones_like(parameter)
    torch.optim.SGD(param_groups(module, 0.1, lr=0.1, layer_decay=0.5)).step()
    for name, parameter in module.named_parameters():
        gradient = 1.0 + (0.1 * before[name] if parameter.ndim == 2 else 0.0)
        expected = before[name] - reference_learning_rate(name, 2, 0.1, 0.5) * gradient
        assert torch.allclose(parameter, expected, rtol=1e-12, atol=1e-14)


def test_in_a_sequential_the_weights_count_and_norms_belong_to_the_layer_before():
    found = learning_rates(nn.Sequential(nn.Linear(3, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 2)))
    expected = {"0": 0.25, "1": 0.25, "2": 0.5, "4": 1.0}
    assert found == {f"{i}.{kind}": lr for i, lr in expected.items() for kind in ("weight", "bias")}


def test_head_and_embedding_go_by_their_role_wherever_they_are_registered():
    module = nn.ModuleDict({"head": nn.Linear(4, 2), "blocks": nn.ModuleList([Block()]), "token": nn.Embedding(3, 4)})
    found = learning_rates(module)
    assert [found[name] for name in ("head.weight", "head.bias", "blocks.0.fc.weight")] == [1.0, 1.0, 0.5]
    assert found["token.weight"] == learning_rates(GPT(n_layer=1, tied=True))["token.weight"] == 0.25


def test_the_stack_is_the_longest_outside_of_other_layers_or_the_one_that_is_named():
    stages = nn.ModuleList(nn.Sequential(*(Block() for _ in range(depth))) for depth in (2, 6, 2))
    module = nn.ModuleDict({"short": nn.Sequential(nn.Linear(4, 4)), "stages": stages, "head": nn.Linear(4, 2)})
    names = [f"stages.{i}.fc.weight" for i in ("0.0", "1.0", "1.5", "2.0")]
    assert [learning_rates(module)[name] for name in names] == [0.125, 0.25, 0.25, 0.5]
    assert [learning_rates(module, stack="stages.1")[name] for name in names] == [0.5**7, 0.5**6, 0.5, 1.0]
    twice = nn.ModuleDict({"first": nn.Linear(4, 4, bias=False), "second": nn.Linear(4, 4, bias=False)})
    twice["body"] = nn.Sequential(twice["first"], nn.ReLU(), twice["second"])
    twice["head"] = nn.Linear(4, 2, bias=False)
    assert learning_rates(twice) == {"first.weight": 0.25, "second.weight": 0.5, "head.weight": 1.0}


def test_normalized_weight_decay_is_the_one_of_the_paper_and_half_as_much_in_a_run_four_times_as_long():
    for batch_size, samples, epochs in ((128, 50_000, 100), (1, 1, 1), (64, 1000, 0.5)):
        expected = 0.025 * math.sqrt(batch_size / (samples * epochs))
        assert normalized_weight_decay(0.025, batch_size, samples, epochs) == pytest.approx(expected, rel=1e-12)
        assert normalized_weight_decay(0.025, batch_size, samples, 4 * epochs) == pytest.approx(expected / 2, rel=1e-12)


# Errors

NAME = "the whole name of a parameter or module, or a pattern for it, such as 'token.weight', got "
STACK = "the name of an nn.ModuleList or nn.Sequential of layers with weights where `layer_decay` finds none, got "
OUT_OF_BOUNDS = [
    ("weight_decay", -0.1, "at least 0 and finite, got -0.1."),
    ("weight_decay", math.nan, "at least 0 and finite, got nan."),
    ("lr", -1.0, "at least 0 and finite, got -1.0."),
    ("lr", None, "given with `layer_decay`, got None."),
    ("layer_decay", 0.0, "in (0, 1], got 0.0."),
    ("layer_decay", 1.1, "in (0, 1], got 1.1."),
    ("no_decay", ["bais"], "roles out of ('matrix', 'embedding',"),
    ("no_decay", "norm", "a list of roles, got 'norm'."),
    ("no_decay_names", "fc", NAME + "'fc'."),
    ("head", ["head", "classifier"], NAME + "'classifier'."),
    ("scale_invariant", "fc", NAME + "'fc'."),
    ("stack", "layers", STACK + "'layers'."),
    ("module", GPT().requires_grad_(False), "one with parameters that require a gradient, got GPT."),
]


@pytest.mark.parametrize(("argument", "value", "rest"), OUT_OF_BOUNDS)
def test_an_argument_of_param_groups_out_of_its_bounds_is_refused_by_name(argument, value, rest):
    arguments = {"module": GPT(), "weight_decay": 0.1, "lr": 1.0, "layer_decay": 0.5}
    with refused("param_groups", argument, rest):
        param_groups(**(arguments | {argument: value}))


def test_layer_decay_is_refused_where_there_is_no_stack_of_layers():
    with refused("param_groups", "stack", STACK + "None."):
        param_groups(nn.Sequential(nn.Linear(4, 2)), 0.1, lr=1.0, layer_decay=0.5)


@pytest.mark.parametrize("argument", ["head", "scale_invariant"])
def test_a_pattern_that_fits_nothing_or_is_none_is_refused(argument):
    with refused("parameter_roles", argument, NAME + "'hea'."):
        parameter_roles(GPT(), **{argument: "hea"})
    with refused("parameter_roles", argument, "a regular expression, got '(': "):
        parameter_roles(GPT(), **{argument: ["("]})


@pytest.mark.parametrize("argument", ["weight_decay", "batch_size", "samples", "epochs"])
def test_an_argument_of_normalized_weight_decay_out_of_its_bounds_is_refused_by_name(argument):
    arguments = {"weight_decay": 0.1, "batch_size": 1, "samples": 1, "epochs": 1} | {argument: -1}
    bound = {"weight_decay": "at least 0 and finite", "epochs": "greater than 0"}.get(argument, "at least 1")
    with refused("normalized_weight_decay", argument, f"{bound}, got -1."):
        normalized_weight_decay(**arguments)
