# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.functional import NormHistory, ada_grad_norm


def test_it_follows_its_equations_also_when_gamma_changes():
    history = NormHistory.start(torch.zeros(1, dtype=torch.float64))
    m = v = 0.0
    first = second = 1.0
    for step in range(1, 60):
        norm = 5 + math.sin(step) + (1000 if step == 30 else 0)
        gamma = 0.7 - 0.005 * step
        history, factor = ada_grad_norm(torch.tensor([norm], dtype=torch.float64), history, gamma, 0.9, eps=1e-8)
        m, v = gamma * m + (1 - gamma) * norm, 0.9 * v + 0.1 * norm * norm
        first, second = first * gamma, second * 0.9
        expected = m / (1 - first) / (math.sqrt(v / (1 - second)) + 1e-8) / norm
        assert factor.item() == pytest.approx(expected, rel=1e-13)


def test_a_constant_norm_becomes_one():
    history = NormHistory.start(torch.zeros(2))
    for _ in range(20):
        norms = torch.tensor([7.0, 0.01])
        history, factor = ada_grad_norm(norms, history, 0.7, 0.9)
        torch.testing.assert_close(factor * norms, torch.ones(2), rtol=1e-4, atol=0)


def test_a_zero_norm_has_the_factor_one():
    _, factor = ada_grad_norm(torch.zeros(1), NormHistory.start(torch.zeros(1)), 0.7, 0.9)
    assert factor.item() == 1.0
