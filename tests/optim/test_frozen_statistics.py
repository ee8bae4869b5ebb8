# SPDX-License-Identifier: Apache-2.0
import gc

import pytest
import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from lightning_stable.optim.frozen_statistics import FrozenStatistics


class Rebinds(nn.Module):
    """Statistics that are bound anew, not changed in place, and something else that counts."""

    def __init__(self):
        super().__init__()
        self.register_buffer("running_scale", torch.ones(()))
        self.register_buffer("calls", torch.zeros(()))

    def forward(self, x):
        self.running_scale = 0.9 * self.running_scale + 0.1 * x.detach().std()
        self.calls += 1
        return x / self.running_scale


LAYERS = {
    "batch norm": lambda: nn.BatchNorm1d(3),
    "cumulative": lambda: nn.BatchNorm1d(3, momentum=None),
    "without affine": lambda: nn.BatchNorm1d(3, affine=False),
    "not tracking": lambda: nn.BatchNorm1d(3, track_running_stats=False),
    "instance norm": lambda: nn.InstanceNorm1d(3, track_running_stats=True),
    "nested": lambda: nn.Sequential(nn.Sequential(nn.BatchNorm1d(3)), nn.Linear(3, 3), nn.BatchNorm1d(3)),
    "shared": lambda: nn.Sequential(*[nn.BatchNorm1d(3)] * 2),
    "evaluating": lambda: nn.BatchNorm1d(3).eval(),
    "double": lambda: nn.BatchNorm1d(3).double(),
}


@pytest.fixture(params=LAYERS.values(), ids=LAYERS.keys())
def layer(request):
    torch.manual_seed(0)
    return request.param()


def run(layer):
    x = torch.randn(8, 3, dtype=next(layer.buffers(), torch.zeros(())).dtype, requires_grad=True)
    shape = (2, 3, 4) if isinstance(layer, nn.InstanceNorm1d) else (8, 3)
    out = layer(x.view(shape))
    out.square().sum().backward()
    return out.detach()


def test_statistics_are_those_of_before_bit_for_bit_and_outputs_as_ever(layer):
    run(layer)
    buffers = dict(layer.named_buffers())
    before = {name: buffer.clone() for name, buffer in buffers.items()}
    statistics, state = FrozenStatistics(), torch.get_rng_state()
    statistics.freeze()
    frozen = [run(layer), run(layer)]
    statistics.restore()
    assert all(buffer is buffers[name] for name, buffer in layer.named_buffers())
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
    torch.set_rng_state(state)
    assert torch.equal(run(layer), frozen[0])
    assert torch.equal(run(layer), frozen[1])


def test_what_ran_before_and_what_runs_later_counts():
    layer, statistics = nn.BatchNorm1d(3), FrozenStatistics()
    run(layer)
    for _ in range(2):
        statistics.freeze()
        run(layer)
        statistics.restore()
        run(layer)
    assert layer.num_batches_tracked.item() == 3


def test_only_statistics_are_put_back_also_when_they_were_bound_anew():
    layer, statistics = Rebinds(), FrozenStatistics()
    scale = layer.running_scale
    statistics.freeze()
    run(layer)
    statistics.restore()
    assert layer.running_scale is scale
    assert scale.item() == 1.0
    assert layer.calls.item() == 1


def test_a_pass_that_is_run_anew_for_the_backward_leaves_no_trace():
    layer, statistics = nn.BatchNorm1d(3), FrozenStatistics()
    statistics.freeze()
    checkpoint(layer, torch.randn(8, 3, requires_grad=True), use_reentrant=False).square().sum().backward()
    statistics.restore()
    assert layer.num_batches_tracked.item() == 0
    assert torch.equal(layer.running_mean, torch.zeros(3))


@pytest.mark.filterwarnings("ignore:Using `torch.compile.module.` when there are global hooks:UserWarning")
def test_a_compiled_module_is_seen():
    layer, statistics = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3)), FrozenStatistics()
    compiled = torch.compile(layer, backend="eager")
    for _ in range(2):
        compiled(torch.randn(8, 3)).sum().backward()
        statistics.freeze()
        compiled(torch.randn(8, 3)).sum().backward()
        statistics.restore()
    assert layer[1].num_batches_tracked.item() == 2


def test_nothing_is_left_behind_and_calls_out_of_order_do_no_harm():
    hooks = nn.modules.module._global_forward_pre_hooks
    statistics, before = FrozenStatistics(), len(hooks)
    statistics.restore()
    statistics.freeze()
    statistics.freeze()
    assert len(hooks) == before + 1
    statistics.restore()
    statistics.restore()
    assert len(hooks) == before


def test_one_that_is_forgotten_takes_its_hook_along():
    hooks = nn.modules.module._global_forward_pre_hooks
    statistics, before = FrozenStatistics(), len(hooks)
    statistics.freeze()
    run(nn.BatchNorm1d(3))
    del statistics
    gc.collect()
    assert len(hooks) == before
