# SPDX-License-Identifier: Apache-2.0
"""Memory that is known beforehand is measured to the byte."""

import pytest
import torch
from torch import nn
from torch.optim import SGD, AdamW

from lightning_stable.bench.step_memory import peak_extra_bytes, state_bytes
from lightning_stable.optim import SPAM

CPU = torch.device("cpu")


class Hungry(SGD):
    """Takes as many bytes as it is told, in two parts, and keeps none of them."""

    def __init__(self, params, sizes):
        super().__init__(params)
        self.sizes = sizes

    def step(self, closure=None):
        parts = [torch.empty(size, dtype=torch.uint8) for size in self.sizes]
        del parts
        torch.empty(max(self.sizes), dtype=torch.uint8)


def parameters_with_gradients(*sizes):
    parameters = [nn.Parameter(torch.ones(size)) for size in sizes]
    for parameter in parameters:
        parameter.grad = torch.ones_like(parameter)
    return parameters


# Within a step


@pytest.mark.parametrize("sizes", [(1,), (1000, 24), (5_000_000, 3)])
def test_a_step_that_takes_so_many_bytes_is_found_to_take_them(sizes):
    optimizer = Hungry(parameters_with_gradients(3), sizes)
    assert peak_extra_bytes(optimizer.step, CPU) == sum(sizes)


def test_what_was_given_back_before_does_not_count():
    def run():
        torch.empty(300, dtype=torch.uint8)
        torch.empty(500, dtype=torch.uint8)

    assert peak_extra_bytes(run, CPU) == 500


def test_what_an_operation_needs_inside_of_it_counts():
    values = torch.linspace(0.0, 1.0, 1000)
    kept = peak_extra_bytes(values.sort, CPU)
    assert kept >= 1000 * (4 + 8)  # sorted values and indices


def test_what_is_kept_counts_and_so_does_nothing_at_all():
    kept = []
    assert peak_extra_bytes(lambda: kept.append(torch.empty(10)), CPU) == 40
    assert peak_extra_bytes(lambda: None, CPU) == 0


def test_torchs_own_optimizers_need_what_is_known_of_them():
    parameters = parameters_with_gradients(1000, 500)
    for arguments, expected in (({"foreach": True}, 4 * 1500), ({"fused": True}, 0)):
        optimizer = AdamW(parameters, **arguments)
        optimizer.step()
        assert peak_extra_bytes(optimizer.step, CPU) == pytest.approx(expected, abs=200)


def test_measuring_twice_gives_the_same_and_nothing_on_stderr(capfd):
    optimizer = SPAM(parameters_with_gradients(1000))
    optimizer.step()
    assert peak_extra_bytes(optimizer.step, CPU) == peak_extra_bytes(optimizer.step, CPU)
    assert capfd.readouterr() == ("", "")


def test_an_error_within_is_raised():
    with pytest.raises(ZeroDivisionError):
        peak_extra_bytes(lambda: 1 / 0, CPU)
    assert peak_extra_bytes(lambda: torch.empty(10), CPU) == 40


# Between steps


def test_adamw_keeps_eight_bytes_a_parameter():
    optimizer = AdamW(parameters_with_gradients(1000, 500))
    assert state_bytes(optimizer) == 0
    optimizer.step()
    assert state_bytes(optimizer) == 8 * 1500 + 2 * 4  # and the number of steps, once a tensor


def test_sparse_momentum_keeps_its_share():
    optimizer = SPAM([parameters_with_gradients((100, 10))[0]], density=0.25)
    optimizer.step()
    assert state_bytes(optimizer) == 0.25 * 8 * 1000 + 4


def test_memory_is_counted_as_a_whole_and_once():
    optimizer = SGD(parameters_with_gradients(3))
    buffer = torch.zeros(100)
    optimizer.state["of all"] = {"view": buffer[:10], "parts": [buffer[10:], (buffer,)], "number": 5, "none": None}
    optimizer.state["total_step"] = 7
    assert state_bytes(optimizer) == 400
