# SPDX-License-Identifier: Apache-2.0
import copy
import math

import pytest
import torch
from torch import nn

from lightning_stable.nn import GhostBatchNorm, convert_ghost_batchnorm
from lightning_stable.parameters import parameter_roles

SHAPES = {"1d": (5,), "sequence": (5, 7), "2d": (5, 4, 3), "3d": (5, 2, 3, 2)}


def batch_norm(kind):
    return {"1d": nn.BatchNorm1d, "sequence": nn.BatchNorm1d, "2d": nn.BatchNorm2d, "3d": nn.BatchNorm3d}[kind]


def inputs(kind, count, dtype=torch.float64, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return 3 * torch.randn(count, *SHAPES[kind], generator=generator, dtype=dtype) + 1


def reference(x, ghost_size, gamma, beta, running_mean, running_var, eps=1e-5, momentum=0.1):
    """Ghost by ghost and channel by channel, with sums."""
    outputs = torch.empty_like(x)
    running_mean, running_var = running_mean.clone(), running_var.clone()
    for start in range(0, len(x), ghost_size):
        for channel in range(x.shape[1]):
            values = x[start : start + ghost_size, channel]
            mean = values.sum() / values.numel()
            squares = ((values - mean) ** 2).sum()
            normed = (values - mean) / torch.sqrt(squares / values.numel() + eps)
            outputs[start : start + ghost_size, channel] = gamma[channel] * normed + beta[channel]
            running_mean[channel] = (1 - momentum) * running_mean[channel] + momentum * mean
            unbiased = squares / (values.numel() - 1)
            running_var[channel] = (1 - momentum) * running_var[channel] + momentum * unbiased
    return outputs, running_mean, running_var


def initialised(norm, seed=1):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var):
            tensor.copy_(torch.rand(tensor.shape, generator=generator, dtype=tensor.dtype) + 0.5)
    return norm


# The equations


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("count", [4, 12, 14, 3])
def test_outputs_and_running_statistics_are_those_of_the_equations(kind, count):
    norm = initialised(GhostBatchNorm(5, ghost_size=4, dtype=torch.float64))
    x = inputs(kind, count)
    start = [tensor.clone() for tensor in (norm.weight, norm.bias, norm.running_mean, norm.running_var)]
    output, mean, var = reference(x, 4, *start)
    torch.testing.assert_close(norm(x), output, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_mean, mean, rtol=1e-12, atol=1e-12)
    torch.testing.assert_close(norm.running_var, var, rtol=1e-12, atol=1e-12)
    assert norm.num_batches_tracked == math.ceil(count / 4)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("momentum", [0.1, 0.5, 1.0, 0.0, None])
@pytest.mark.parametrize("count", [6, 24, 27])
def test_ghosts_are_as_many_calls_of_batch_norm(kind, momentum, count):
    """Outputs, running statistics and all gradients."""
    ghosts = initialised(GhostBatchNorm(5, 6, momentum=momentum, dtype=torch.float64))
    calls = batch_norm(kind)(5, momentum=momentum, dtype=torch.float64)
    calls.load_state_dict(ghosts.state_dict())
    ours, theirs = (inputs(kind, count).requires_grad_() for _ in range(2))
    for step in range(2):
        y, z = ghosts(ours), torch.cat([calls(part) for part in theirs.split(6)])
        torch.testing.assert_close(y, z, rtol=1e-12, atol=1e-12)
        weights = inputs(kind, count, seed=7 + step)
        (y * weights).sum().backward()
        (z * weights).sum().backward()
    torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-9, atol=1e-9)
    for name in ("weight", "bias"):
        torch.testing.assert_close(getattr(ghosts, name).grad, getattr(calls, name).grad, rtol=1e-9, atol=1e-9)
    for name, buffer in ghosts.named_buffers():
        torch.testing.assert_close(buffer, calls.get_buffer(name), rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("kind", SHAPES)
def test_one_ghost_is_batch_norm_and_so_is_evaluation(kind):
    ghost = initialised(GhostBatchNorm(5, ghost_size=8))
    plain = batch_norm(kind)(5)
    plain.load_state_dict(ghost.state_dict())
    x = inputs(kind, 8, torch.float32)
    assert torch.equal(ghost(x), plain(x))
    torch.testing.assert_close(ghost.running_var, plain.running_var)
    plain.load_state_dict(ghost.state_dict())
    many = inputs(kind, 21, torch.float32)
    assert torch.equal(ghost.eval()(many), plain.eval()(many))
    assert ghost.num_batches_tracked == 1


def test_without_running_statistics_evaluation_has_ghosts_too():
    norm = GhostBatchNorm(5, 4, track_running_stats=False, affine=False).eval()
    x = inputs("2d", 8, torch.float32)
    torch.testing.assert_close(norm(x)[4:], nn.BatchNorm2d(5, affine=False)(x[4:]))
    assert not norm.state_dict()


def test_small_ghosts_bring_more_noise_into_a_sample_than_the_whole_batch():
    """The property: what a sample becomes depends on a few neighbours, whatever the batch."""
    generator = torch.Generator().manual_seed(0)
    sample = torch.ones(1, 1)

    def spread(ghost_size):
        norm, values = GhostBatchNorm(1, ghost_size), []
        for _ in range(200):
            batch = torch.cat([sample, torch.randn(255, 1, generator=generator)])
            values.append(norm(batch)[0])
        return torch.stack(values).std().item()

    assert spread(16) > 2.5 * spread(256)  # the root of 16 is 4


# Edges


def test_a_last_ghost_of_a_single_value_joins_the_one_before():
    norm = GhostBatchNorm(5, 4, affine=False, dtype=torch.float64)
    x = inputs("1d", 9)
    plain = nn.BatchNorm1d(5, affine=False, dtype=torch.float64)
    torch.testing.assert_close(norm(x), torch.cat([plain(x[:4]), plain(x[4:])]))
    assert norm.num_batches_tracked == 2
    assert norm(inputs("2d", 9)).shape == (9, 5, 4, 3)  # one image has many values


def test_a_single_value_is_refused_as_batch_norm_does():
    with pytest.raises(ValueError, match=r"`GhostBatchNorm\(ghost_size=1\)` needs more than one position"):
        GhostBatchNorm(5, 1)(torch.zeros(4, 5))
    with pytest.raises(ValueError, match="Expected more than 1 value per channel"):
        GhostBatchNorm(5, 4)(torch.zeros(1, 5))
    assert GhostBatchNorm(5, 1)(inputs("2d", 3, torch.float32)).shape == (3, 5, 4, 3)


def test_a_batch_without_samples_changes_no_statistics():
    norm = GhostBatchNorm(5, 4)
    assert norm(torch.zeros(0, 5, 2)).shape == (0, 5, 2)
    assert torch.equal(norm.running_mean, torch.zeros(5))
    assert norm.num_batches_tracked == 0


def test_nan_stays_in_its_ghost():
    norm = GhostBatchNorm(5, 4)
    x = inputs("2d", 12, torch.float32)
    x[5] = float("nan")
    finite = norm(x).isfinite().flatten(1).all(dim=1)
    assert finite.tolist() == 4 * [True] + 4 * [False] + 4 * [True]


@pytest.mark.parametrize("count", [8, 24])
def test_channels_last_and_other_strides_give_the_same(count):
    norm, other = (GhostBatchNorm(5, 8) for _ in range(2))
    x = inputs("2d", count, torch.float32)
    torch.testing.assert_close(norm(x), other(x.to(memory_format=torch.channels_last)))
    torch.testing.assert_close(norm(x), other(x.transpose(2, 3).contiguous().transpose(2, 3)))


@pytest.mark.parametrize("count", [4, 8, 24, 27])
@pytest.mark.parametrize(("kind", "layout"), [("2d", torch.channels_last), ("3d", torch.channels_last_3d)])
def test_channels_stay_last(kind, layout, count):
    x = inputs(kind, count, torch.float32)
    assert GhostBatchNorm(5, 8)(x.to(memory_format=layout)).is_contiguous(memory_format=layout)
    assert GhostBatchNorm(5, 8)(x).is_contiguous()


@pytest.mark.parametrize("momentum", [0.1, None])
def test_nothing_is_read_from_a_device(momentum):
    norm = GhostBatchNorm(5, 8, momentum=momentum, device="meta")  # which has no values
    assert norm(inputs("2d", 24, torch.float32).to("meta")).shape == (24, 5, 4, 3)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
@pytest.mark.parametrize("momentum", [0.1, None])
def test_the_host_waits_for_no_device(momentum):
    norm, x = GhostBatchNorm(5, 8, momentum=momentum, device="cuda"), inputs("2d", 27, torch.float32).cuda()
    norm(x)
    torch.cuda.set_sync_debug_mode("error")
    try:
        norm(x)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_inputs_keep_their_type_and_the_statistics_theirs(dtype):
    norm = GhostBatchNorm(5, 8)
    y = norm(inputs("2d", 20, torch.float32).to(dtype))
    assert y.dtype == dtype
    assert norm.running_mean.dtype == torch.float32
    assert y.isfinite().all()


# Conversion


def network():
    torch.manual_seed(0)
    block = nn.Sequential(nn.Conv2d(5, 5, 1), nn.BatchNorm2d(5, eps=1e-3, momentum=0.2), nn.ReLU())
    return nn.Sequential(nn.BatchNorm2d(5, affine=False), block, nn.Flatten(), nn.LayerNorm(60), nn.BatchNorm1d(60))


def test_every_batch_norm_is_replaced_and_keeps_its_tensors_and_settings():
    model = network()
    before = dict(model.named_parameters())
    buffers = dict(model.named_buffers())
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1)
    state = copy.deepcopy(model.state_dict())
    model[1].eval()
    assert convert_ghost_batchnorm(model, 4) is model
    kinds = [type(module).__name__ for module in model.modules()]
    assert kinds.count("GhostBatchNorm") == 3
    assert not any(kind.startswith("BatchNorm") for kind in kinds)
    assert (model[1][1].eps, model[1][1].momentum, model[1][1].training, model[4].training) == (1e-3, 0.2, False, True)
    assert all(parameter is before[name] for name, parameter in model.named_parameters())
    assert all(buffer is buffers[name] for name, buffer in model.named_buffers())
    model.load_state_dict(state)
    network().load_state_dict(model.state_dict())
    model(inputs("2d", 12, torch.float32)).square().sum().backward()
    optimizer.step()
    assert parameter_roles(model)["1.1.weight"] == "norm"


def test_a_batch_of_one_ghost_goes_through_a_converted_network_as_before():
    x = inputs("2d", 8, torch.float32)
    torch.testing.assert_close(convert_ghost_batchnorm(network(), 8)(x), network()(x))


def test_a_batch_norm_alone_is_replaced_and_others_are_left_alone():
    assert isinstance(convert_ghost_batchnorm(nn.BatchNorm1d(3)), GhostBatchNorm)
    for other in (nn.SyncBatchNorm(3), nn.GroupNorm(1, 3), GhostBatchNorm(3), nn.InstanceNorm1d(3)):
        assert convert_ghost_batchnorm(other) is other


def test_a_batch_norm_that_is_there_twice_stays_one():
    shared = nn.BatchNorm1d(3)
    model = convert_ghost_batchnorm(nn.ModuleList([shared, nn.Sequential(shared)]))
    assert isinstance(model[0], GhostBatchNorm)
    assert model[0] is model[1][0]


def test_a_batch_norm_with_two_names_in_one_parent_is_replaced_under_both():
    shared = nn.BatchNorm1d(3)
    model = convert_ghost_batchnorm(nn.Sequential(nn.Linear(3, 3), shared, nn.Linear(3, 3), shared))
    assert isinstance(model[1], GhostBatchNorm)
    assert model[1] is model[3]
    model.register_module("none", None)
    assert convert_ghost_batchnorm(model) is model


class Activated(nn.BatchNorm2d):
    def forward(self, input):
        return super().forward(input).relu()


def test_a_batch_norm_that_does_more_is_refused_before_anything_is_replaced():
    model = nn.Sequential(nn.BatchNorm2d(3), Activated(3))
    with pytest.raises(ValueError, match=r"no BatchNorm with a `forward` of its own, got Activated: .* activation"):
        convert_ghost_batchnorm(model)
    assert type(model[0]) is nn.BatchNorm2d


def test_a_batch_norm_by_another_name_is_replaced():
    class Renamed(nn.BatchNorm2d):
        pass

    assert isinstance(convert_ghost_batchnorm(Renamed(3)), GhostBatchNorm)


def test_no_statistics_stay_none():
    new = convert_ghost_batchnorm(nn.BatchNorm1d(3, affine=False, track_running_stats=False))
    assert new.running_mean is None
    assert new.weight is None
    assert "ghost_size=128" in repr(new)


# Errors


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (
            lambda: GhostBatchNorm(0),
            r"`GhostBatchNorm\(num_features=...\)` must be a whole number of at least 1, got 0",
        ),
        (lambda: GhostBatchNorm(3, 0), r"`GhostBatchNorm\(ghost_size=...\)` must be a whole number .* got 0\."),
        (lambda: GhostBatchNorm(3, True), r"`GhostBatchNorm\(ghost_size=...\)` must be a whole number .* got True\."),
        (lambda: GhostBatchNorm(3, eps=math.nan), r"`GhostBatchNorm\(eps=...\)` must be greater than 0 .* got nan\."),
        (
            lambda: GhostBatchNorm(3, momentum=1.5),
            r"`GhostBatchNorm\(momentum=...\)` must be None or in \[0, 1\], got 1\.5",
        ),
        (lambda: GhostBatchNorm(3)(torch.zeros(2, 4)), r"`GhostBatchNorm\(3\)` takes \[B, 3, ...\] .* got \[2, 4\]"),
        (
            lambda: GhostBatchNorm(3)(torch.zeros(3)),
            r"`GhostBatchNorm\(3\)` takes \[B, 3, ...\] of 2 to 5 axes, got \[3\]",
        ),
        (
            lambda: convert_ghost_batchnorm(nn.Identity(), 0),
            r"`convert_ghost_batchnorm\(ghost_size=...\)` must .* got 0",
        ),
    ],
)
def test_what_cannot_be_is_refused_by_name(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.filterwarnings("ignore:Lazy modules")
def test_a_lazy_batch_norm_has_to_see_a_batch_first():
    with pytest.raises(
        ValueError, match=r"`convert_ghost_batchnorm\(module=...\)` must have no LazyBatchNorm1d that has not"
    ):
        convert_ghost_batchnorm(nn.Sequential(nn.LazyBatchNorm1d()))
