# SPDX-License-Identifier: Apache-2.0
"""What every optimizer owes to its state, and to tensors of any precision and layout."""

import copy
import inspect
import io
import pickle

import pytest
import torch
import torch.distributed.checkpoint as dcp
from torch.distributed.checkpoint.state_dict import get_optimizer_state_dict, set_optimizer_state_dict

from lightning_stable.optim import chunks
from tests.contracts.optimizer_runs import (
    STEPS,
    busy,
    exceptions_without_a_test,
    frozen,
    gradients_at,
    make_weights,
    take,
    train,
)
from tests.contracts.optimizer_runs import pytest_generate_tests as pytest_generate_tests
from tests.faulty_runs import assert_same

# What is not asked of whom, and why. This list may only shrink.
NOT_ASKED = {}
# Tests of an argument, asked of those that have it.
ABOUT = {
    "test_moments_are_float32_under_bfloat16_parameters_and_stay_so": "moment_dtype",
    "test_moments_in_the_parameters_precision_can_be_had_and_stay_so": "moment_dtype",
}


def test_every_exception_is_one_of_a_test():
    assert not exceptions_without_a_test(globals())


@pytest.mark.parametrize("split", [0, 1, 8])
def test_resume_equals_an_uninterrupted_run(kind, split):
    expected = make_weights()
    optimizer = busy(kind, expected)
    train(optimizer, expected, range(split))
    buffer = io.BytesIO()
    torch.save((expected, optimizer.state_dict()), buffer)
    buffer.seek(0)
    train(optimizer, expected, range(split, STEPS))
    weights, state = torch.load(buffer, weights_only=True)
    resumed = busy(kind, weights, lr=0.5)
    resumed.load_state_dict(state)
    train(resumed, weights, range(split, STEPS))
    assert_same(frozen(resumed, weights), frozen(optimizer, expected))


@pytest.mark.filterwarnings("ignore:torch.distributed is disabled:UserWarning")
def test_resume_through_a_distributed_checkpoint_equals_an_uninterrupted_run(kind, tmp_path):
    expected = torch.nn.ParameterList(make_weights())
    optimizer = busy(kind, expected)
    train(optimizer, expected, range(8))
    resumed_weights = copy.deepcopy(expected)
    dcp.save({"optimizer": get_optimizer_state_dict(expected, optimizer)}, checkpoint_id=tmp_path, no_dist=True)
    train(optimizer, expected, range(8, STEPS))
    resumed = busy(kind, resumed_weights, lr=0.5)
    resumed.zero_grad()  # gradients would keep torch from preparing the state that it loads into
    loaded = {"optimizer": get_optimizer_state_dict(resumed_weights, resumed)}
    dcp.load(loaded, checkpoint_id=tmp_path, no_dist=True)
    set_optimizer_state_dict(resumed_weights, resumed, loaded["optimizer"])
    train(resumed, resumed_weights, range(8, STEPS))
    assert_same(frozen(resumed, resumed_weights), frozen(optimizer, expected))


@pytest.mark.parametrize(
    "twin", [copy.deepcopy, lambda value: pickle.loads(pickle.dumps(value))], ids=["copy", "pickle"]
)
def test_a_copy_in_mid_run_goes_on_alike_and_apart(kind, twin):
    weights = make_weights()
    optimizer = busy(kind, weights)
    train(optimizer, weights, range(8))
    other_optimizer, other = twin((optimizer, weights))
    train(optimizer, weights, range(8, STEPS))
    train(other_optimizer, other, range(8, STEPS))
    assert_same(frozen(other_optimizer, other), frozen(optimizer, weights))


def test_a_state_that_lacks_an_argument_is_filled_in(kind):
    weights = make_weights()
    state = busy(kind, weights).state_dict()
    names = set(inspect.signature(kind).parameters) & set(state["param_groups"][0]) - {"params", "lr", "weight_decay"}
    for name in names:
        del state["param_groups"][0][name]
    optimizer = busy(kind, weights)
    optimizer.load_state_dict(state)
    train(optimizer, weights, range(3))
    assert names <= set(optimizer.param_groups[0])


# Precision and layout


def moment_dtypes(optimizer, weights):
    """Of the state that has the shape of its parameter."""
    states = [(weight, optimizer.state[weight]) for weight in weights if weight.ndim]
    return {value.dtype for weight, state in states for value in state.values() if value.shape == weight.shape}


def reload(optimizer, weights):
    buffer = io.BytesIO()
    torch.save(optimizer.state_dict(), buffer)
    buffer.seek(0)
    optimizer.load_state_dict(torch.load(buffer, weights_only=True))
    return moment_dtypes(optimizer, weights)


def test_moments_are_float32_under_bfloat16_parameters_and_stay_so(kind):
    weights = make_weights(dtype=torch.bfloat16)
    optimizer = busy(kind, weights)
    train(optimizer, weights, range(5))
    assert moment_dtypes(optimizer, weights) == reload(optimizer, weights) == {torch.float32}


def test_moments_in_the_parameters_precision_can_be_had_and_stay_so(kind):
    weights = make_weights(dtype=torch.bfloat16)
    optimizer = busy(kind, weights, moment_dtype="parameter")
    train(optimizer, weights, range(5))
    assert moment_dtypes(optimizer, weights) == reload(optimizer, weights) == {torch.bfloat16}


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_parameters_of_less_precision_go_the_way_of_float32_ones(kind, dtype):
    coarse, fine = make_weights(dtype=dtype), make_weights()
    train(busy(kind, coarse), coarse, range(5))
    train(busy(kind, fine), fine, range(5))
    for one, other, start in zip(coarse, fine, make_weights(dtype=dtype), strict=True):
        assert one.dtype is dtype
        torch.testing.assert_close(one.float(), other, rtol=0.02, atol=0.02)
        assert one.numel() == 0 or not torch.equal(one, start)


def test_parameters_of_any_size_move(kind):
    weights = make_weights()
    train(busy(kind, weights), weights, range(2))
    for weight, start in zip(weights, make_weights(), strict=True):
        assert weight.isfinite().all()
        assert bool((weight != start).all())


LAYOUTS = {
    "transposed": lambda weight: weight.t().contiguous().t(),
    "strided": lambda weight: torch.stack([weight, weight], dim=-1).select(-1, 0),
    "channels last": lambda weight: weight.contiguous(memory_format=torch.channels_last),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("whose", ["parameter's", "gradient's"])
def test_a_tensor_s_memory_may_lie_in_any_way(kind, layout, whose):
    shape = (2, 3, 4, 2) if layout == "channels last" else (3, 4)
    plain, weights = make_weights([shape]), make_weights([shape])
    change = LAYOUTS[layout]
    if whose == "parameter's":
        weights = [torch.nn.Parameter(change(weight.detach())) for weight in weights]
        assert not weights[0].is_contiguous()
    memory, strides = weights[0].data_ptr(), weights[0].stride()
    optimizer, expected = busy(kind, weights), busy(kind, plain)
    for step in range(7):
        gradients = gradients_at(step, plain)
        take(expected, plain, gradients)
        take(optimizer, weights, [change(each) for each in gradients] if whose == "gradient's" else gradients)
    torch.testing.assert_close(weights[0], plain[0], rtol=1e-5, atol=1e-6)
    assert (weights[0].data_ptr(), weights[0].stride()) == (memory, strides)


def test_a_gradient_that_is_one_number_seen_many_times_will_do(kind):
    weights, plain = make_weights([(3, 4)]), make_weights([(3, 4)])
    take(busy(kind, weights), weights, [torch.ones(()).expand(3, 4)])
    take(busy(kind, plain), plain, [torch.ones(3, 4)])
    torch.testing.assert_close(weights, plain)


def test_the_chunks_that_a_tensor_is_worked_on_in_do_not_show(kind, monkeypatch):
    weights, whole = make_weights(), make_weights()
    train(busy(kind, whole), whole, range(STEPS))
    monkeypatch.setattr(chunks, "CHUNK", 5)
    train(busy(kind, weights), weights, range(STEPS))
    torch.testing.assert_close(weights, whole, rtol=1e-5, atol=1e-6)
