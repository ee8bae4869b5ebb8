# SPDX-License-Identifier: Apache-2.0
"""What every module owes, asked of each one the room exports."""

import copy
import inspect
import pickle

import jsonargparse
import pytest
import torch
from torch import nn

import lightning_stable.nn as room

MODULES = [
    member
    for _, member in inspect.getmembers(room, inspect.isclass)
    if issubclass(member, nn.Module) and not inspect.isabstract(member)
]
# What has no default since it is the size of the data, and what makes a small input go through all of the code.
SIZES = {"GhostBatchNorm": {"num_features": 4}}
BUSY = {"GhostBatchNorm": {"ghost_size": 4}}
INPUT = torch.randn(10, 4, 3, generator=torch.Generator().manual_seed(0))


@pytest.fixture(params=MODULES, ids=lambda member: member.__name__)
def kind(request):
    return request.param


def busy(kind):
    torch.manual_seed(0)
    return kind(**SIZES.get(kind.__name__, {}), **BUSY.get(kind.__name__, {}))


def train(module, steps, start=0):
    """A few steps on inputs of their own; returns the outputs."""
    optimizer = torch.optim.SGD(module.parameters(), lr=0.1)
    outputs = []
    for step in range(start, start + steps):
        optimizer.zero_grad()
        outputs.append(module(INPUT.roll(step, 0) * (step + 1)))
        outputs[-1].square().mean().backward()
        optimizer.step()
    return [output.detach() for output in outputs]


def same(a, b):
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_it_constructs_with_the_sizes_alone_and_pickles(kind):
    module = kind(**SIZES.get(kind.__name__, {}))
    copied = pickle.loads(pickle.dumps(module))
    assert type(copied) is kind
    assert same(copied.state_dict(), module.state_dict())


def test_it_comes_from_yaml(kind):
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--module", type=nn.Module)
    sizes = [f"--module.{name}={value}" for name, value in SIZES.get(kind.__name__, {}).items()]
    config = parser.parse_args([f"--module={kind.__module__}.{kind.__name__}", *sizes])
    instantiate = (
        getattr(parser, "instantiate", None) or parser.instantiate_classes
    )  # the latter until jsonargparse 4.48
    assert type(instantiate(config).module) is kind


def test_a_state_that_is_loaded_in_mid_run_goes_on_as_before(kind, tmp_path):
    straight = busy(kind)
    train(straight, 3)
    torch.save(straight.state_dict(), tmp_path / "state.pt")
    resumed = busy(kind)
    resumed.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    for one, other in zip(train(straight, 3, start=3), train(resumed, 3, start=3), strict=True):
        assert torch.equal(one, other)
    assert same(straight.state_dict(), resumed.state_dict())


def test_a_deep_copy_is_independent(kind):
    module = busy(kind)
    frozen = copy.deepcopy(module)
    before = {name: tensor.clone() for name, tensor in frozen.state_dict().items()}
    train(module, 2)
    assert same(frozen.state_dict(), before)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_dtypes_stay(kind, dtype):
    module = busy(kind).to(dtype)
    output = module(INPUT.to(dtype))
    assert output.dtype == dtype
    assert output.isfinite().all()
    output.sum().backward()
    assert all(parameter.grad.dtype == dtype for parameter in module.parameters())


def test_it_works_under_autocast(kind):
    with torch.autocast("cpu", torch.bfloat16):
        output = busy(kind)(INPUT)
    assert output.isfinite().all()


def test_gradients_are_those_of_finite_differences(kind):
    module = busy(kind).double()
    frozen = copy.deepcopy(module.state_dict())

    def function(x):
        module.load_state_dict(frozen)
        return module(x)

    assert torch.autograd.gradcheck(function, INPUT[:9].double().requires_grad_())


def test_nan_comes_out_and_is_no_error(kind):
    assert busy(kind)(INPUT * float("nan")).isnan().any()
    assert not busy(kind)(INPUT * float("inf")).isfinite().all()


def test_strides_do_not_matter_and_the_input_is_left_alone(kind):
    x = INPUT.clone()
    expected = busy(kind)(x)
    assert torch.equal(x, INPUT)
    other = INPUT.transpose(0, 2).contiguous().transpose(0, 2)
    torch.testing.assert_close(busy(kind)(other), expected)


def test_evaluation_changes_nothing(kind):
    module = busy(kind)
    train(module, 2)
    module.eval()
    before = {name: tensor.clone() for name, tensor in module.state_dict().items()}
    first = module(INPUT)
    assert torch.equal(module(INPUT), first)
    assert same(module.state_dict(), before)


def test_it_leaves_the_global_random_numbers_alone(kind):
    module = busy(kind)
    torch.manual_seed(3)
    train(module, 2)
    drawn = torch.rand(3)
    torch.manual_seed(3)
    assert torch.equal(torch.rand(3), drawn)


def test_it_runs_on_the_device_meta(kind):
    with torch.device("meta"):
        module = busy(kind)
    assert all(tensor.is_meta for tensor in module.state_dict().values())
    assert module(INPUT.to("meta")).shape == busy(kind)(INPUT).shape


def test_it_compiles_to_the_same(kind):
    plain, compiled = busy(kind), torch.compile(busy(kind), backend="eager", fullgraph=True)
    torch.testing.assert_close(compiled(INPUT), plain(INPUT))
