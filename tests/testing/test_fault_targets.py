# SPDX-License-Identifier: Apache-2.0
import pytest

from lightning_stable.testing import InjectFault
from lightning_stable.testing.fault_targets import target_module, target_parameters
from tests.faulty_runs import Net, make_batches, run
from tests.guard.test_recovery import Compiled


def test_targets_are_found_by_name_or_chosen():
    net = Net()
    assert target_module(net, None) is net.layers[0]
    assert target_module(net, "layers.4") is net.layers[4]
    assert target_parameters(net, "layers.4.weight")[0] is net.layers[4].weight
    net.layers[0].requires_grad_(False)
    assert len(target_parameters(net, None)) == 4


@pytest.mark.parametrize(
    ("kind", "what"),
    [("nan_gradient", "parameter that is trained"), ("nan_activation", "module"), ("nan_data", "place")],
)
def test_a_target_that_is_not_there_is_named(kind, what):
    with pytest.raises(ValueError, match=rf"`InjectFault\(target=\.\.\.\)` must name a {what}.*, got 'nowhere'"):
        run(make_batches(3), [InjectFault(kind, step=1, target="nowhere")])


def test_what_was_compiled_is_one_module():
    net = Compiled()
    assert target_module(net, None) is target_module(net, "layers") is net.layers
    with pytest.raises(ValueError, match=r"must name a module, got 'layers._orig_mod.0'; there are 'layers', 'mean_l"):
        target_module(net, "layers._orig_mod.0")
