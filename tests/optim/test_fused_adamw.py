# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.optim import fused_adamw
from lightning_stable.optim.fused_adamw import adamw_


def tensors(dtype):
    generator = torch.Generator().manual_seed(0)
    return [torch.rand(37, generator=generator, dtype=torch.float64).to(dtype) for _ in range(4)]


@pytest.mark.parametrize("fused", [True, False])
@pytest.mark.parametrize("eps", [0.0, 1e-3])
def test_it_is_one_step_of_the_equations(fused, eps):
    w, g, m, v = tensors(torch.float64)
    expected = []
    for x, y, first, second in zip(w.tolist(), g.tolist(), m.tolist(), v.tolist(), strict=True):
        first, second = 0.8 * first + 0.2 * y, 0.9 * second + 0.1 * y * y
        expected.append((0.95 * x - 0.3 * first / (math.sqrt(second) + eps), y, first, second))
    adamw_([w], [g], [m], [v], step_size=0.3, betas=(0.8, 0.9), eps=eps, decay=0.05, fused=fused)
    torch.testing.assert_close(
        torch.stack([w, g, m, v], 1), torch.tensor(expected, dtype=torch.float64), atol=1e-14, rtol=0
    )


@pytest.mark.parametrize("fused", [True, False])
def test_with_torchs_bias_corrections_it_is_torchs_adamw(fused):
    parameter = torch.nn.Parameter(tensors(torch.float64)[0])
    ours, m, v = parameter.detach().clone(), torch.zeros(37).double(), torch.zeros(37).double()
    optimizer = torch.optim.AdamW([parameter], lr=1e-2, weight_decay=0.1)
    for step in range(1, 20):
        parameter.grad = torch.sin(step * torch.arange(37.0)).double()
        optimizer.step()
        correction = math.sqrt(1 - 0.999**step)
        step_size = 1e-2 * correction / (1 - 0.9**step)
        adamw_([ours], [parameter.grad], [m], [v], step_size, (0.9, 0.999), 1e-8 * correction, decay=1e-3, fused=fused)
    torch.testing.assert_close(ours, parameter.detach(), rtol=0, atol=1e-14)


def test_without_a_step_size_only_decay_and_moments_move():
    w, g, m, v = tensors(torch.float32)
    before = w.clone()
    adamw_([w], [g], [m], [v], step_size=0.0, betas=(0.0, 0.0), eps=1e-8, decay=0.5)
    assert torch.equal(w, before * 0.5)
    assert torch.equal(m, g)


def test_nothing_happens_to_nothing():
    empty = torch.zeros(0)
    adamw_([empty], [empty], [empty.clone()], [empty.clone()], step_size=1.0, betas=(0.9, 0.9), eps=1e-8)


def test_it_works_where_torch_has_no_fused_kernel(monkeypatch):
    ends = []
    for kernel in (fused_adamw._FUSED, None):
        monkeypatch.setattr(fused_adamw, "_FUSED", kernel)
        w, g, m, v = tensors(torch.float64)
        adamw_([w], [g], [m], [v], step_size=0.1, betas=(0.9, 0.99), eps=1e-8, decay=0.01)
        ends.append(torch.stack([w, m, v]))
    torch.testing.assert_close(*ends, rtol=0, atol=1e-15)


def test_torch_still_has_the_private_kernel_we_are_fast_with():
    assert fused_adamw._FUSED is not None
