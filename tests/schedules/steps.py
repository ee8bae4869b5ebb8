# SPDX-License-Identifier: Apache-2.0
"""Optimizers and steps for tests of schedules."""

import torch


def sgd(*rates, momentum=0.0):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates]
    return torch.optim.SGD(groups, lr=1.0, momentum=momentum)


def adamw(*rates, beta2=0.999):
    groups = [{"params": [torch.nn.Parameter(torch.zeros(1))], "lr": lr} for lr in rates]
    return torch.optim.AdamW(groups, lr=1.0, betas=(0.9, beta2))


def advance(scheduler, steps):
    """The rates that `steps` optimizer steps run at, a list for each step."""
    rates = []
    for _ in range(steps):
        rates.append([float(group["lr"]) for group in scheduler.optimizer.param_groups])
        scheduler.optimizer.step()
        scheduler.step()
    return rates


def first_rates(scheduler, steps):
    """Those of the first group."""
    return [rates[0] for rates in advance(scheduler, steps)]
