# SPDX-License-Identifier: Apache-2.0
"""Runs of a few steps, for what is asked of every optimizer that the room exports.

All steps are taken through a closure that finds the gradients it is given, so that an optimizer may ask twice.
"""

import copy
import inspect

import torch
from torch.optim import Optimizer

import lightning_stable.optim as room

OPTIMIZERS = [
    member
    for _, member in inspect.getmembers(room, inspect.isclass)
    if issubclass(member, Optimizer) and not inspect.isabstract(member)
]
# Arguments with which a run of a few steps meets all that an optimizer does; defaults are for real runs.
BUSY = {
    "SAM": {"base_args": {"momentum": 0.9}},
    "SPAM": {"spike_threshold": 2.0, "clip_after": 2, "reset_interval": 5, "reset_warmup": 3},
    "StableSPAM": {"theta": 0.5, "reset_interval": 5, "total_steps": 20},
}
SHAPES = ((3, 4), (5,), (), (1,), (0, 3), (2, 3, 2, 2))
STEPS = 14


def pytest_generate_tests(metafunc):
    """Ask every optimizer, but for the exceptions that a test's module lists."""
    if "kind" not in metafunc.fixturenames:
        return
    name, module = metafunc.function.__name__, metafunc.module
    asked = [kind for kind in OPTIMIZERS if (kind.__name__, name) not in module.NOT_ASKED]
    asked = [kind for kind in asked if module.ABOUT.get(name, "params") in inspect.signature(kind).parameters]
    metafunc.parametrize("kind", asked, ids=lambda kind: kind.__name__)


def exceptions_without_a_test(module):
    """Names in a module's lists that are no test of it."""
    named = {name for _, name in module["NOT_ASKED"]} | set(module["ABOUT"])
    return {name for name in named if not inspect.isfunction(module.get(name))}


def busy(kind, parameters, **arguments):
    return kind(parameters, **{"lr": 0.01, **BUSY.get(kind.__name__, {}), **arguments})


def make_weights(shapes=SHAPES, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    return [torch.nn.Parameter(torch.randn(shape, generator=generator).to(dtype)) for shape in shapes]


def gradients_at(step, weights):
    """Drawn by the number of the step, with a spike now and then; the second weight often has none."""
    generator = torch.Generator().manual_seed(100 + step)
    scale = 30.0 if step % 6 == 3 else 1.0
    drawn = [scale * torch.randn(weight.shape, generator=generator).to(weight.dtype) for weight in weights]
    return [None if index == 1 and step % 3 else gradient for index, gradient in enumerate(drawn)]


def take(optimizer, weights, gradients):
    """One step with these gradients."""

    def closure():
        optimizer.zero_grad()
        for weight, gradient in zip(weights, gradients, strict=True):
            weight.grad = gradient
        return torch.tensor(7.0)

    return optimizer.step(closure)


def train(optimizer, weights, steps):
    for step in steps:
        take(optimizer, weights, gradients_at(step, weights))
    return weights


def frozen(optimizer, weights):
    return copy.deepcopy(([weight.detach() for weight in weights], optimizer.state_dict()))


def constant(value, weights):
    return [torch.full_like(weight, value) for weight in weights]
