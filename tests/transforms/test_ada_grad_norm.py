# SPDX-License-Identifier: Apache-2.0
import math

import pytest
import torch

from lightning_stable.optim import StableSPAM
from lightning_stable.transforms import AdaClip, AdaGradNorm

SHAPES = [(6, 4), (5,), ()]


def gradients(step):
    generator = torch.Generator().manual_seed(step)
    found = [torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]
    if step % 7 == 3:
        found = [gradient * 100 for gradient in found]
    if step % 5 == 2:
        found[1] = None
    return found


def parameters():
    return [torch.nn.Parameter(torch.zeros(shape, dtype=torch.float64)) for shape in SHAPES]


def test_it_follows_its_equations():
    normalise, params = AdaGradNorm(gamma1=0.7, gamma2=0.9, eps=1e-8), parameters()
    a, b, seen = [0.0] * 3, [0.0] * 3, [0] * 3
    for step in range(1, 71):
        for parameter, gradient in zip(params, gradients(step), strict=True):
            parameter.grad = gradient
        normalise.transform(params)
        for i, gradient in enumerate(gradients(step)):
            if gradient is None:
                continue
            entries = gradient.flatten().tolist()
            norm = math.sqrt(sum(g * g for g in entries))
            seen[i] += 1
            a[i], b[i] = 0.7 * a[i] + 0.3 * norm, 0.9 * b[i] + 0.1 * norm**2
            size = a[i] / (1 - 0.7 ** seen[i]) / (math.sqrt(b[i] / (1 - 0.9 ** seen[i])) + 1e-8)
            expected = torch.tensor([g / norm * size for g in entries], dtype=torch.float64)
            torch.testing.assert_close(params[i].grad.flatten(), expected, rtol=0, atol=1e-12)


def test_a_spike_has_about_the_norm_of_any_other_gradient():
    normalise, parameter = AdaGradNorm(), torch.nn.Parameter(torch.zeros(100))
    generator = torch.Generator().manual_seed(0)
    norms = []
    for step in range(100):
        parameter.grad = torch.randn(100, generator=generator) * (1000 if step == 80 else 1)
        normalise.transform([parameter])
        norms.append(parameter.grad.norm().item())
    assert 0.9 < min(norms[:80]) < max(norms[:80]) < 1.1
    assert norms[80] < 1


@pytest.mark.parametrize("bad", [torch.nan, torch.inf])
def test_what_is_not_finite_is_left_alone_and_not_remembered(bad):
    parameter, normalise = torch.nn.Parameter(torch.zeros(2)), AdaGradNorm()
    for value in (1.0, bad, 1.0):
        parameter.grad = torch.tensor([1.0, value])
        normalise.transform([parameter])
    assert parameter.grad.norm().item() == pytest.approx(1.0)
    assert normalise.state_dict()["step"].tolist() == [2.0]


def test_behind_ada_clip_and_before_adamw_it_is_stable_spam_without_resets():
    """Stable-SPAM is these two transforms and AdamW; its own file has the resets."""
    ours, theirs = parameters(), parameters()
    chain, adamw = [AdaClip(), AdaGradNorm()], torch.optim.AdamW(ours, lr=1e-2, weight_decay=0.1)
    stable_spam = StableSPAM(theirs, lr=1e-2, weight_decay=0.1, reset_interval=None)
    for step in range(1, 71):
        for params in (ours, theirs):
            for parameter, gradient in zip(params, gradients(step), strict=True):
                parameter.grad = gradient
        for transform in chain:
            transform.transform(ours)
        adamw.step()
        stable_spam.step()
    torch.testing.assert_close(ours, theirs, rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("argument", "message"),
    [
        ({"gamma1": 1.0}, r"`AdaGradNorm\(gamma1=...\)` must be at least 0 and less than 1, got 1.0"),
        ({"gamma2": -1.0}, r"`AdaGradNorm\(gamma2=...\)` must be at least 0 and less than 1, got -1.0"),
        ({"eps": -1.0}, r"`AdaGradNorm\(eps=...\)` must be at least 0, got -1.0"),
    ],
)
def test_bad_arguments_are_named(argument, message):
    with pytest.raises(ValueError, match=message):
        AdaGradNorm(**argument)
