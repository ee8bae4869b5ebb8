# SPDX-License-Identifier: Apache-2.0
"""What every gradient transform owes, asked of each one the room exports."""

import copy
import inspect
import pickle
import random

import jsonargparse
import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Replicate, Shard, distribute_tensor

import lightning_stable.transforms as room
from tests.distributed.processes import of_both, on_two_ranks

STEPS = 40
SHAPES = [(4, 3), (3, 2, 2), (6,), (1,), (), (0,), (0, 4), (2, 5)]
TRANSFORMS = [
    member
    for _, member in inspect.getmembers(room, inspect.isclass)
    if issubclass(member, room.Transform) and not inspect.isabstract(member)
]

CLIPS_INFINITY = {room.SpikeClip}  # to it an infinite entry is a spike like any other; to all others a broken tensor


@pytest.fixture(params=TRANSFORMS, ids=lambda member: member.__name__)
def kind(request):
    return request.param


def parameters(dtype=torch.float32, shapes=SHAPES):
    generator = torch.Generator().manual_seed(7)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def gradients(step, params):
    """Those of one step: with spikes, steps without a gradient, and a zero."""
    generator = torch.Generator().manual_seed(step)
    drawn = [torch.randn(parameter.shape, generator=generator).to(parameter.dtype) for parameter in params]
    if step in (13, 31):
        drawn = [1000 * gradient for gradient in drawn]
    if step in (17, 35):
        drawn[0].flatten()[0] = 500.0
    if step == 20:
        drawn[2].zero_()
    return [None if step % 7 == 5 and position == 1 else gradient for position, gradient in enumerate(drawn)]


def run(transform, params, steps):
    """The gradients after the transform, step by step."""
    path = []
    for step in steps:
        for parameter, gradient in zip(params, gradients(step, params), strict=True):
            parameter.grad = gradient
        transform.transform(params)
        path.append([None if parameter.grad is None else parameter.grad.clone() for parameter in params])
    return path


def same(left, right):
    """Whether two states or paths are alike, bit by bit; NaN equals NaN."""
    if isinstance(left, torch.Tensor):
        return (
            left.dtype == right.dtype
            and torch.equal(left.isnan(), right.isnan())
            and torch.equal(left.nan_to_num(7.0), right.nan_to_num(7.0))
        )
    if isinstance(left, dict):
        return left.keys() == right.keys() and all(same(left[key], right[key]) for key in left)
    if isinstance(left, list | tuple):
        return len(left) == len(right) and all(map(same, left, right))
    return left == right


def all_tensors(value):
    if isinstance(value, torch.Tensor):
        yield value
    elif isinstance(value, dict | list | tuple):
        for item in value.values() if isinstance(value, dict) else value:
            yield from all_tensors(item)


def all_are_finite(value):
    return all(bool(tensor.isfinite().all()) for tensor in all_tensors(value))


# What it remembers


def test_resume_equals_an_uninterrupted_run(kind, tmp_path):
    expected, first, second = run(kind(), parameters(), range(STEPS)), kind(), kind()
    run(first, parameters(), range(30))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert same(second.state_dict(), first.state_dict())
    assert same(run(second, parameters(), range(30, STEPS)), expected[30:])


def test_resume_from_the_very_start_equals_an_uninterrupted_run(kind):
    transform = kind()
    transform.load_state_dict(kind().state_dict())
    assert same(run(transform, parameters(), range(STEPS)), run(kind(), parameters(), range(STEPS)))


def test_going_back_in_mid_run_repeats_the_same_gradients(kind):
    transform = kind()
    run(transform, parameters(), range(28))
    state = transform.state_dict()
    once = run(transform, parameters(), range(28, STEPS))
    transform.load_state_dict(state)
    assert same(run(transform, parameters(), range(28, STEPS)), once)


def test_the_state_dict_is_a_copy_and_loading_takes_one(kind):
    transform, other = kind(), kind()
    run(transform, parameters(), range(28))
    state = transform.state_dict()
    frozen = copy.deepcopy(state)
    run(transform, parameters(), range(28, STEPS))
    assert same(state, frozen)
    other.load_state_dict(state)
    run(other, parameters(), range(28, STEPS))
    assert same(state, frozen)
    for tensor in all_tensors(state):
        tensor.fill_(0)
    assert same(other.state_dict(), transform.state_dict())


@pytest.mark.parametrize("twin", [copy.deepcopy, lambda transform: pickle.loads(pickle.dumps(transform))])
def test_a_copy_made_in_mid_run_goes_on_alike_and_apart(kind, twin):
    transform = kind()
    run(transform, parameters(), range(28))
    other = twin(transform)
    once = run(other, parameters(), range(28, STEPS))
    assert same(run(transform, parameters(), range(28, STEPS)), once)


def test_a_parameter_that_comes_at_the_end_later_is_taken_up(kind):
    transform, params = kind(), parameters()
    run(transform, params[:-1], range(10))
    path = run(transform, params, range(10, STEPS))
    assert all_are_finite([path, transform.state_dict()])


# What it is given


def test_parameters_without_a_gradient_are_passed_over(kind):
    transform, params = kind(), parameters()
    before = transform.state_dict()
    transform.transform(params)
    transform.transform([])
    assert all(parameter.grad is None for parameter in params)
    assert same(transform.state_dict(), before)


def test_it_takes_an_iterator_of_parameters(kind):
    once, twice = parameters(), parameters()
    expected = run(kind(), once, [3])
    for parameter, gradient in zip(twice, gradients(3, twice), strict=True):
        parameter.grad = gradient
    kind().transform(iter(twice))
    assert same([parameter.grad for parameter in twice], expected[0])


def test_zero_gradients_stay_zero_at_the_start_and_later(kind):
    transform, params = kind(), parameters()
    for steps in (range(30), range(30, STEPS)):
        for _ in range(30):
            for parameter in params:
                parameter.grad = torch.zeros_like(parameter)
            transform.transform(params)
            assert not any(parameter.grad.any() for parameter in params)
            assert all_are_finite([[parameter.grad for parameter in params], transform.state_dict()])
        path = run(transform, params, steps)
        assert all_are_finite([path, transform.state_dict()])
        assert any(gradient.any() for gradient in path[-1])


def with_bad_entries(transform, bad):
    """After a healthy start, three steps with a bad entry: of each the tensor before and after, and all the others."""
    params = parameters()
    run(transform, params, range(28))
    for position in (0, 2, 3):
        for parameter, gradient in zip(params, gradients(28, params), strict=True):
            parameter.grad = gradient
        params[position].grad.flatten()[0] = bad
        before = params[position].grad.clone()
        transform.transform(params)
        others = [parameter.grad for other, parameter in enumerate(params) if other != position]
        yield before, params[position].grad, others


def test_a_tensor_that_holds_nan_is_left_as_it_is(kind):
    assert all(same(before, after) for before, after, _ in with_bad_entries(kind(), torch.nan))


@pytest.mark.parametrize("bad", [torch.inf, -torch.inf])
def test_a_tensor_that_holds_infinity_is_left_as_it_is_or_loses_that_entry_alone(kind, bad):
    for before, after, _ in with_bad_entries(kind(), bad):
        if kind in CLIPS_INFINITY:
            assert after.isfinite().all()
            assert torch.equal(after.sign(), before.sign())
            assert same(after.flatten()[1:], before.flatten()[1:])
        else:
            assert same(before, after)


@pytest.mark.parametrize("bad", [torch.nan, torch.inf, -torch.inf])
def test_nan_and_infinity_harm_neither_other_tensors_nor_later_steps(kind, bad):
    transform = kind()
    for _, _, others in with_bad_entries(transform, bad):
        assert all_are_finite([others, transform.state_dict()])
    path = run(transform, parameters(), range(28, STEPS))
    assert all_are_finite([path, transform.state_dict()])
    assert max(float(gradient.abs().max()) for gradient in path[-1] if gradient.numel()) > 0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
def test_a_gradient_stays_the_tensor_it_was(kind, dtype):
    transform, params = kind(), parameters(dtype)
    for step in range(STEPS):
        for parameter, gradient in zip(params, gradients(step, params), strict=True):
            parameter.grad = gradient
        held = [(p.grad, p.grad.data_ptr(), p.grad.stride(), p.grad.dtype) for p in params if p.grad is not None]
        transform.transform(params)
        now = [(p.grad, p.grad.data_ptr(), p.grad.stride(), p.grad.dtype) for p in params if p.grad is not None]
        assert all(one[0] is other[0] and one[1:] == other[1:] for one, other in zip(held, now, strict=True))
        assert all_are_finite([p.grad for p in params if p.grad is not None])


@pytest.mark.parametrize(
    "odd",
    [
        lambda gradient: gradient.flatten().repeat_interleave(2)[::2].reshape(gradient.shape),
        lambda gradient: torch.stack([gradient, gradient], -1)[..., 0],
        lambda gradient: gradient.movedim(0, -1).contiguous().movedim(-1, 0) if gradient.ndim else gradient,
    ],
    ids=["strided", "every_second", "transposed"],
)
def test_gradients_that_are_not_contiguous_come_out_the_same(kind, odd):
    plain, strange = parameters(torch.float64), parameters(torch.float64)
    one, other = kind(), kind()
    for step in range(STEPS):
        for parameter, gradient in zip(plain, gradients(step, plain), strict=True):
            parameter.grad = gradient
        for parameter, gradient in zip(strange, gradients(step, strange), strict=True):
            parameter.grad = None if gradient is None else odd(gradient)
        one.transform(plain)
        other.transform(strange)
        for left, right in zip(plain, strange, strict=True):
            if left.grad is not None:
                torch.testing.assert_close(right.grad, left.grad, rtol=1e-12, atol=1e-12)


def test_a_sparse_gradient_is_refused(kind):
    layer = torch.nn.Embedding(3, 2, sparse=True)
    layer(torch.tensor([1])).sum().backward()
    message = rf"`{kind.__name__}\.transform\(params=\.\.\.\)` must have dense gradients; that of parameter 0, of shape"
    with pytest.raises(ValueError, match=message):
        kind().transform(layer.parameters())


# What it leaves alone


def test_parameters_and_the_global_random_numbers_stay_as_they_were(kind):
    params, python, torch_state = parameters(), random.getstate(), torch.get_rng_state()
    before = [parameter.detach().clone() for parameter in params]
    run(kind(), params, range(STEPS))
    assert same([parameter.detach() for parameter in params], before)
    assert random.getstate() == python
    assert torch.equal(torch.get_rng_state(), torch_state)


def test_no_graph_is_kept(kind):
    transform, params = kind(), parameters()
    run(transform, params, range(3))
    assert not any(parameter.grad.requires_grad for parameter in params if parameter.grad is not None)
    assert not any(tensor.requires_grad for tensor in all_tensors(transform.state_dict()))


def test_the_clip_rate_is_none_or_a_share(kind):
    transform = kind()
    for step in range(STEPS):
        run(transform, parameters(), [step])
        if transform.clip_rate is not None:
            assert transform.clip_rate.shape == ()
            assert 0 <= transform.clip_rate.item() <= 1


def test_it_constructs_from_yaml(kind):
    parser = jsonargparse.ArgumentParser()
    parser.add_argument("--transform", type=room.Transform)
    config = parser.parse_args([f"--transform={kind.__module__}.{kind.__name__}"])
    made = parser.instantiate(config).transform
    assert type(made) is kind
    assert same(run(made, parameters(), range(STEPS)), run(kind(), parameters(), range(STEPS)))


# Sharded parameters


def compare_sharded_with_whole(rank, folder):
    """On one rank of two."""
    mesh = init_device_mesh("cpu", (2,))
    for kind in TRANSFORMS:
        for axis in (0, 1):
            placed = [Shard(axis) if len(shape) > axis else Replicate() for shape in SHAPES]
            whole, one, other = parameters(), kind(), kind()
            shards = [
                torch.nn.Parameter(distribute_tensor(parameter.detach().clone(), mesh, [placement]))
                for parameter, placement in zip(whole, placed, strict=True)
            ]
            for step in range(STEPS):
                drawn = gradients(step, whole)
                if step == 33:
                    drawn[0][0, 0] = torch.nan
                for left, right, gradient, placement in zip(whole, shards, drawn, placed, strict=True):
                    left.grad = gradient
                    right.grad = None if gradient is None else distribute_tensor(gradient.clone(), mesh, [placement])
                one.transform(whole)
                other.transform(shards)
                for left, right in zip(whole, shards, strict=True):
                    if left.grad is not None:
                        torch.testing.assert_close(
                            right.grad.full_tensor(), left.grad, rtol=1e-4, atol=1e-5, equal_nan=True, msg=kind.__name__
                        )
                torch.testing.assert_close(other.clip_rate, one.clip_rate)


@pytest.mark.slow
def test_sharded_gradients_come_out_as_whole_ones_do(tmp_path):
    assert of_both(on_two_ranks({"compare": compare_sharded_with_whole}, tmp_path), "compare") == [None, None]
